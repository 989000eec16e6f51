//! `Kind`: what was found, by name. The set is closed: operators switch kinds on and off by these names.

use std::{fmt, str::FromStr};

/// Whom a finding would hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Whoever reads it can act as its owner: keys, tokens, passwords.
    Secret,
    /// It tells who a person is, or how to reach or pay them.
    Personal,
}

impl Class {
    /// The class's name in configuration and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Personal => "personal",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No kind has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kind of secret is called `{0}`")]
pub struct UnknownKind(
    /// The name that was given.
    pub String,
);

macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident = $name:literal, $class:ident;)+) => {
        /// What a finding is.
        ///
        /// The order decides when two findings claim the same text: the earlier kind gives its name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])+ $kind,)+
        }

        impl Kind {
            /// Every kind, in order.
            pub const ALL: &'static [Kind] = &[$(Self::$kind,)+];

            /// The kind's name: in configuration, in reports, and in place of what is masked.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// Whom a finding of this kind would hurt.
            pub fn class(self) -> Class {
                match self {
                    $(Self::$kind => Class::$class,)+
                }
            }
        }
    };
}

kinds! {
    /// An AWS access key id: the public half, worth knowing because the other half is often near.
    AwsKeyId = "aws-key-id", Secret;
    /// An AWS secret access key, 40 characters beside an AWS word or key id.
    AwsSecretKey = "aws-secret-key", Secret;
    /// A Google API key, `AIza…`.
    GoogleApiKey = "google-api-key", Secret;
    /// A Google OAuth client secret, `GOCSPX-…`.
    GoogleClientSecret = "google-client-secret", Secret;
    /// The private key in a Google service account's JSON file.
    GcpServiceKey = "gcp-service-key", Secret;
    /// An Azure storage or service bus key, as in connection strings.
    AzureKey = "azure-key", Secret;
    /// A client secret of an Azure AD (Entra) application.
    AzureClientSecret = "azure-client-secret", Secret;
    /// A GitHub token of any of its forms.
    GithubToken = "github-token", Secret;
    /// A GitLab token: personal, deploy, runner, trigger.
    GitlabToken = "gitlab-token", Secret;
    /// A Slack token, or the address of an incoming webhook.
    SlackToken = "slack-token", Secret;
    /// A Stripe live key, or a webhook's signing secret.
    StripeKey = "stripe-key", Secret;
    /// An OpenAI key, or one of the many services that copied its form.
    OpenaiKey = "openai-key", Secret;
    /// An Anthropic key.
    AnthropicKey = "anthropic-key", Secret;
    /// A Hugging Face token.
    HuggingfaceToken = "huggingface-token", Secret;
    /// A key of another model provider: Groq, xAI, NVIDIA, Replicate, Perplexity, OpenRouter.
    ProviderKey = "model-provider-key", Secret;
    /// An npm token.
    NpmToken = "npm-token", Secret;
    /// A PyPI upload token.
    PypiToken = "pypi-token", Secret;
    /// A Twilio API key.
    TwilioKey = "twilio-key", Secret;
    /// A SendGrid key.
    SendgridKey = "sendgrid-key", Secret;
    /// A Telegram bot's token.
    TelegramToken = "telegram-token", Secret;
    /// A JSON web token.
    Jwt = "jwt", Secret;
    /// A PGP private key block.
    PgpPrivateKey = "pgp-private-key", Secret;
    /// A private key in PEM form: TLS, SSH and others; also PuTTY's and age's.
    PrivateKey = "private-key", Secret;
    /// The password in an address: `postgres://user:password@host/`.
    UrlPassword = "url-password", Secret;
    /// A value that is assigned to a word like `password` or `api_key`, or sent as `Bearer`.
    AssignedSecret = "assigned-secret", Secret;
    /// A payment card's number.
    PaymentCard = "payment-card", Personal;
    /// An international bank account number.
    Iban = "iban", Personal;
    /// A United States social security number.
    UsSsn = "us-ssn", Personal;
    /// A Chinese resident identity number.
    CnResidentId = "cn-resident-id", Personal;
    /// A French social security number (NIR).
    FrNir = "fr-nir", Personal;
    /// A Polish PESEL.
    PlPesel = "pl-pesel", Personal;
    /// A Brazilian CPF.
    BrCpf = "br-cpf", Personal;
    /// A German tax identification number.
    DeTaxId = "de-tax-id", Personal;
    /// An Indian Aadhaar number.
    InAadhaar = "in-aadhaar", Personal;
    /// A Dutch citizen service number (BSN).
    NlBsn = "nl-bsn", Personal;
    /// A Spanish DNI, or a foreigner's NIE.
    EsDni = "es-dni", Personal;
    /// A United Kingdom national insurance number.
    UkNino = "uk-nino", Personal;
    /// An Italian codice fiscale.
    ItFiscalCode = "it-fiscal-code", Personal;
    /// An e-mail address.
    Email = "email", Personal;
    /// A telephone number in its international form.
    Phone = "phone", Personal;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.iter().find(|kind| kind.as_str() == name);
        found.copied().ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds(u64);

impl Kinds {
    /// The kinds of a list.
    pub(super) const fn of(mut list: &[Kind]) -> Self {
        let mut bits = 0;
        while let Some((kind, rest)) = list.split_first() {
            bits |= 1 << *kind as u64;
            list = rest;
        }
        Self(bits)
    }

    /// Is the kind among them?
    pub(super) fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u64) != 0
    }

    /// Is any kind in both?
    pub(super) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        Self(kinds.into_iter().fold(0, |bits, kind| bits | (1 << kind as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back() {
        for (place, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            assert_eq!(*kind as usize, place, "the list is in order");
            assert!(place < 64, "the set has 64 places");
        }
        assert_eq!("ghp".parse::<Kind>(), Err(UnknownKind("ghp".into())));
        assert_eq!("".parse::<Kind>(), Err(UnknownKind(String::new())));
    }

    #[test]
    fn secrets_give_their_names_before_personal_data() {
        let first = Kind::ALL.iter().position(|kind| kind.class() == Class::Personal).unwrap();
        assert!(Kind::ALL[first..].iter().all(|kind| kind.class() == Class::Personal));
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set = Kinds::of(&[Kind::Iban, Kind::Phone]);
        for kind in Kind::ALL {
            assert_eq!(set.has(*kind), matches!(kind, Kind::Iban | Kind::Phone), "{kind}");
        }
        assert!(set.meets(Kinds::of(&[Kind::Phone, Kind::Jwt])));
        assert!(!set.meets(Kinds::of(&[Kind::Jwt])));
        assert_eq!([Kind::Phone, Kind::Iban].into_iter().collect::<Kinds>(), set);
    }
}
