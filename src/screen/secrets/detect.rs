//! Which texts make which detector look, and what detectors answer.

use super::{
    assigned::{self, Sort},
    cloud, contact, keys,
    kind::{Kind, Kinds},
    number,
    tokens::{self, SPECS},
    view::View,
};
use std::ops::Range;

/// What a detector found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub span: Range<usize>,
    /// Who looks on at the span's end, where only the window ended it.
    pub then: Option<What>,
}

impl Hit {
    /// A finding that is whole.
    pub(super) fn new(kind: Kind, span: Range<usize>) -> Self {
        Self { kind, span, then: None }
    }

    /// One that another detector goes on with.
    pub(super) fn go_on(self, then: Option<What>) -> Self {
        Self { then, ..self }
    }
}

/// A detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A token of this row of [`SPECS`].
    Token(usize),
    /// An AWS key id.
    AwsKeyId,
    /// An AWS secret key.
    AwsSecretKey,
    /// An Azure account's key.
    AzureKey,
    /// An Azure application's secret.
    AzureClientSecret,
    /// A Telegram bot's token.
    Telegram,
    /// A JSON web token.
    Jwt,
    /// The part of a JSON web token behind the window of the first look.
    JwtRest,
    /// A private key in PEM form.
    Pem,
    /// A PuTTY key.
    Putty,
    /// The part of a private key behind the window of the first look.
    PemRest(Kind),
    /// A password in an address.
    UrlPassword,
    /// A value assigned to a word.
    Assigned(Sort),
    /// A value sent as `Bearer`.
    Bearer,
    /// User and password sent as `Basic`.
    Basic,
    /// An e-mail address.
    Email,
    /// A telephone number.
    Phone,
    /// Digits: cards, accounts, and the numbers that states give people.
    Number,
}

/// What makes detectors look; the flag tells that the case of letters matters. Rows of [`SPECS`] come to
/// these.
const SIGNS: &[(&str, What, bool)] = &[
    ("AKIA", What::AwsKeyId, true),
    ("ASIA", What::AwsKeyId, true),
    // The secret often follows its id.
    ("AKIA", What::AwsSecretKey, true),
    ("ASIA", What::AwsSecretKey, true),
    ("aws", What::AwsSecretKey, false),
    ("secret_access_key", What::AwsSecretKey, false),
    ("secretaccesskey", What::AwsSecretKey, false),
    ("secret access key", What::AwsSecretKey, false),
    ("accountkey", What::AzureKey, false),
    ("account_key", What::AzureKey, false),
    ("sharedaccesskey", What::AzureKey, false),
    ("storage_key", What::AzureKey, false),
    ("Q~", What::AzureClientSecret, true),
    (":AA", What::Telegram, true),
    ("eyJ", What::Jwt, true),
    ("-----BEGIN ", What::Pem, true),
    ("Private-Lines: ", What::Putty, true),
    ("://", What::UrlPassword, true),
    ("password", What::Assigned(Sort::Password), false),
    ("passwort", What::Assigned(Sort::Password), false),
    ("passwd", What::Assigned(Sort::Password), false),
    ("passphrase", What::Assigned(Sort::Password), false),
    ("pwd", What::Assigned(Sort::Password), false),
    ("contraseña", What::Assigned(Sort::Password), false),
    ("mot de passe", What::Assigned(Sort::Password), false),
    ("hasło", What::Assigned(Sort::Password), false),
    ("пароль", What::Assigned(Sort::Password), false),
    ("密码", What::Assigned(Sort::Password), false),
    ("secret", What::Assigned(Sort::Key), false),
    ("token", What::Assigned(Sort::Key), false),
    ("api_key", What::Assigned(Sort::Key), false),
    ("api-key", What::Assigned(Sort::Key), false),
    ("api key", What::Assigned(Sort::Key), false),
    ("apikey", What::Assigned(Sort::Key), false),
    ("secret_key", What::Assigned(Sort::Key), false),
    ("secret-key", What::Assigned(Sort::Key), false),
    ("secretkey", What::Assigned(Sort::Key), false),
    ("access_key", What::Assigned(Sort::Key), false),
    ("access-key", What::Assigned(Sort::Key), false),
    ("accesskey", What::Assigned(Sort::Key), false),
    ("auth_key", What::Assigned(Sort::Key), false),
    ("authkey", What::Assigned(Sort::Key), false),
    ("signing_key", What::Assigned(Sort::Key), false),
    ("encryption_key", What::Assigned(Sort::Key), false),
    ("private_key", What::Assigned(Sort::Key), false),
    ("privatekey", What::Assigned(Sort::Key), false),
    ("bearer ", What::Bearer, false),
    ("basic ", What::Basic, false),
    ("@", What::Email, true),
    ("+", What::Phone, true),
];

/// A text that makes a detector look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sign {
    /// The text.
    pub text: &'static str,
    /// Who looks.
    pub what: What,
    /// Does the case of its letters matter?
    pub exact: bool,
}

/// The texts that make the detectors of some kinds look.
pub(super) fn signs(kinds: Kinds) -> Vec<Sign> {
    let rows = SPECS.iter().enumerate();
    let tokens =
        rows.map(|(row, spec)| Sign { text: spec.prefix, what: What::Token(row), exact: true });
    let others = SIGNS.iter().map(|&(text, what, exact)| Sign { text, what, exact });
    tokens.chain(others).filter(|sign| sign.what.kinds().meets(kinds)).collect()
}

impl What {
    /// All that the detector can find.
    pub(super) fn kinds(self) -> Kinds {
        match self {
            Self::Token(row) => SPECS.get(row).map(|spec| spec.kind).into_iter().collect(),
            Self::AwsKeyId => Kinds::of(&[Kind::AwsKeyId]),
            Self::AwsSecretKey => Kinds::of(&[Kind::AwsSecretKey]),
            Self::AzureKey => Kinds::of(&[Kind::AzureKey]),
            Self::AzureClientSecret => Kinds::of(&[Kind::AzureClientSecret]),
            Self::Telegram => Kinds::of(&[Kind::TelegramToken]),
            Self::Jwt | Self::JwtRest => Kinds::of(&[Kind::Jwt]),
            Self::Pem => Kinds::of(&[Kind::PrivateKey, Kind::PgpPrivateKey, Kind::GcpServiceKey]),
            Self::Putty => Kinds::of(&[Kind::PrivateKey]),
            Self::PemRest(kind) => Kinds::of(&[kind]),
            Self::UrlPassword => Kinds::of(&[Kind::UrlPassword]),
            Self::Assigned(_) | Self::Bearer | Self::Basic => Kinds::of(&[Kind::AssignedSecret]),
            Self::Email => Kinds::of(&[Kind::Email]),
            Self::Phone => Kinds::of(&[Kind::Phone]),
            Self::Number => number::KINDS,
        }
    }

    /// Looks at the text that made it look.
    pub(super) fn look(
        self,
        view: &View<'_>,
        Range { start: at, end }: Range<usize>,
    ) -> Option<Hit> {
        match self {
            Self::Token(row) => tokens::detect(view, at, SPECS.get(row)?),
            Self::AwsKeyId => cloud::aws_key_id(view, at),
            Self::AwsSecretKey => cloud::aws_secret_key(view, at, end),
            Self::AzureKey => cloud::azure_key(view, end),
            Self::AzureClientSecret => cloud::azure_client_secret(view, at),
            Self::Telegram => cloud::telegram_token(view, at),
            Self::Jwt => keys::jwt(view, at),
            Self::JwtRest => keys::jwt_rest(view, at),
            Self::Pem => keys::pem(view, at, end),
            Self::Putty => keys::putty(view, at, end),
            Self::PemRest(kind) => keys::pem_rest(view, at, kind),
            Self::UrlPassword => assigned::url_password(view, at, end),
            Self::Assigned(sort) => assigned::assigned(view, end, sort),
            Self::Bearer => assigned::bearer(view, at, end),
            Self::Basic => assigned::basic(view, at, end),
            Self::Email => contact::email(view, at),
            Self::Phone => contact::phone(view, at),
            Self::Number => number::detect(view, at),
        }
    }
}
