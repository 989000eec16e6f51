//! A text with a finding of every kind: what comes before it, the finding, what comes behind. None was
//! ever valid; the findings are written in two pieces so that those who scan this file find none.

use super::Kind;

/// Kind, text before, the finding, text behind.
pub(super) const SAMPLES: &[(Kind, &str, &str, &str)] = &[
    (Kind::AwsKeyId, "id ", concat!("AKI", "AY34FZKBOKMUTVV7A"), " x"),
    (Kind::AwsKeyId, "", concat!("ASI", "AQNZGKIQY56JQ7WML"), ""),
    (
        Kind::AwsSecretKey,
        "aws_secret_access_key = ",
        concat!("e71", "lHFE8l6hlvY5bR215/DEWc1ZCjf+iYQESbHpt"),
        "\n",
    ),
    (
        Kind::AwsSecretKey,
        "secretAccessKey: '",
        concat!("0mp", "AiRLH9DzmL65O6MsMcGp2kTY7xO5ZIredutNa"),
        "' # x",
    ),
    (Kind::GoogleApiKey, "?key=", concat!("AIz", "aCj42gEnI5sEt6OHTerNANMDgHixhf4ceAYk"), "&v=1"),
    (Kind::GoogleClientSecret, "", concat!("GOC", "SPX-FATOHxeiZEhKrnn3Eq2pKPH4Dwya"), ""),
    (
        Kind::AzureKey,
        "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=",
        concat!(
            "oWz/y",
            "upJh0d+htvMuXBG/C4YOE5R2CDFw++ABTqIrjmW3lDoAYZbNphlTr9SAKX6CTm5nXodeygr+CNAQfNUhw=="
        ),
        ";EndpointSuffix=core.windows.net",
    ),
    (
        Kind::AzureKey,
        "Endpoint=sb://n.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=",
        concat!("2Gxmn", "8y/4Oc9fnMgrQp1cAMkHnUiEKkkeY74bUPyfPI="),
        "",
    ),
    (
        Kind::AzureClientSecret,
        "value ",
        concat!("aB38Q", "~pQC66gRMRQTtk3hff63PkLpt6FCCYS8RBH"),
        ".. ",
    ),
    (Kind::GithubToken, "tok ", concat!("ghp", "_TFtx4SptsZ63fYr05xmsFAQVUDtPv34RVOxp"), ","),
    (Kind::GithubToken, "tok ", concat!("gho", "_AO0OGxooTIRizkoZgjV9CIDz3blY3l1h9a6r"), ","),
    (Kind::GithubToken, "tok ", concat!("ghu", "_K33bUWwsXA3zW5sB4c4htFP7yuaFbc0j0MAM"), ","),
    (Kind::GithubToken, "tok ", concat!("ghs", "_2d5QgbaXKxGDgjKFGP8gfJTKxmx40T48U8T3"), ","),
    (Kind::GithubToken, "tok ", concat!("ghr", "_da64YDWG8xMu4uFNIASrYjJdpfX0gq0Q5X0x"), ","),
    (
        Kind::GithubToken,
        "",
        concat!(
            "ghr",
            "_ZJxg6yu8G7u6lZ9HIcDjLDhesGWVGvws35eRrH20Ln8eGAlSZjRZ074yuiv9Y2rNbZ9R82JNvxot"
        ),
        "",
    ),
    (
        Kind::GithubToken,
        "(",
        concat!(
            "ghs",
            "_123456_eyJhbGciOiAiUlMyNTYiLCAidHlwIjogIkpXVCJ9.eyJzdWIiOiAiMTIzNDU2Nzg5MCIsICJuYW1lIjogIkphbmUifQ.FLdrfzS10E95U1rTDFuq0n-IUTfDE_BxZuuznHRyDGI"
        ),
        ").",
    ),
    (
        Kind::GithubToken,
        "",
        concat!(
            "git",
            "hub_pat_11PLHt4znHMfWPhrYLy17u_GBbzG26cRMkoKRcW7OvaCG2jR0XxpYhkyllgCNR4ygwLdKgs7kvJWJgQKPi"
        ),
        " end",
    ),
    (Kind::GitlabToken, "", concat!("glp", "at-IZ8CQgyOhlvBdaJPZr0J"), " end"),
    (
        Kind::GitlabToken,
        "",
        concat!("glp", "at-IDRobcfKTSShDWUovzolAg5IWgedL5qymFhJEpC9.01.12fudsn4t"),
        ". end",
    ),
    (
        Kind::SlackToken,
        "",
        concat!("xox", "b-693676320163-287083172788-cKymvSdqkvWRrwZSvAltUSGm"),
        "",
    ),
    (
        Kind::SlackToken,
        "https://",
        concat!("hooks.slack", ".com/services/TFREHNNXV/BEFHS4JIFHL/KvY589EOi9jD4QQLYTQ3DrQO"),
        " end",
    ),
    (Kind::StripeKey, "", concat!("sk_", "live_vnbyi1sumaOU0yMJmOsvzrQY"), " end"),
    (
        Kind::StripeKey,
        "",
        concat!(
            "rk_",
            "live_llYpcvEVEHRV1OLghpPkArTw8dY1wPbag15fR8tTB3GOKDTKLmuOHmyrQGr5U1lY3yMEf4nzf2m1yFCr1d9F8Ug7ayDTiGnNAcc"
        ),
        " end",
    ),
    (
        Kind::OpenaiKey,
        "",
        concat!("sk-", "zlj7nqAzJ6b1xJahwzOPT3BlbkFJyjC4bireF6inJshcp7oa"),
        " end",
    ),
    (
        Kind::OpenaiKey,
        "'",
        concat!(
            "sk-",
            "proj-5isl8h1r-DtkwJtMYzxtYfVBZvVxmh3_fN-RjXhZZ1OAUq-Uy-v2BbSpVdlyisgjwYdWTFOeFNT3BlbkFJCDlUHkb_mXcI_6rCIENBJ0jY8H2_3ZIiy8etmV6t0aIUUSLBz3GytU7q4PV4aeh399payJ5F"
        ),
        "'",
    ),
    (
        Kind::AnthropicKey,
        "",
        concat!(
            "sk-an",
            "t-api03-7ZmQccodEnXOSwSJtbRJad3dzl6ymDeDGg5AFBZ4A0QSicUI2EIjIitT4hExGooebgpxCR7YEf9wHq943AoJclqawIS7TAA"
        ),
        " end",
    ),
    (Kind::HuggingfaceToken, "", concat!("hf", "_StSzrGIFCfMcBVuMqbfoRKLbWRrKcWWlEH"), " end"),
    (
        Kind::ProviderKey,
        "",
        concat!("gs", "k_fSwHBbReqV5UMQLKg6sALQiVIgyPqmZ2T5KGK7nPtWq0gtYTQ3CX"),
        " end",
    ),
    (
        Kind::ProviderKey,
        "",
        concat!("nva", "pi-NdmVeSm3DHZ8xISuiV71_ecpFjAJZ0ZQ5Erw7Ty7fr9VxjIWjHQrU_UFTZ9OCwcW"),
        " end",
    ),
    (
        Kind::ProviderKey,
        "",
        concat!("sk-", "or-v1-428da8099f4efbacea67c7d1afcc4f14a3e3e04d42f8ac2acaf127972d33e590"),
        " end",
    ),
    (
        Kind::NpmToken,
        "//registry.npmjs.org/:_authToken=",
        concat!("npm", "_2Ko3IMNR9FXQahoBAB5dtOdhFVwb9E0gk4tY"),
        "\n",
    ),
    (
        Kind::PypiToken,
        "",
        concat!(
            "pyp",
            "i-AgEIcHlwaS5vcmcTeGTGg0vpTvIhYA4SyMbJezRiGTsJCOsU6FOaMaIiI1rgPH0athnl3wclVrvvInpEcpMEeCdGhmknghr8e6vef2JoS2bNk85wIKlQBC8oYuNXWwHrAGwqyUzpIltLp7Tz49mzEthkhPz"
        ),
        " end",
    ),
    (Kind::TwilioKey, "", concat!("S", "Kb2c083eb8cb37f0a72e9d34119f3374c"), " end"),
    (
        Kind::SendgridKey,
        "",
        concat!("SG", ".TNgyliyYQblk9uQf6rVdQy.yH2iNDSSyFsN6hNYvfM3PHCz7ysqT5gDfec13oLF8oa"),
        " end",
    ),
    (
        Kind::TelegramToken,
        "/bot ",
        concat!("123456789", ":AAFD4rmZDbDqtELn9ovc0Hs98YGpB7gt180"),
        " end",
    ),
    (
        Kind::Jwt,
        "t=",
        concat!(
            "ey",
            "JhbGciOiAiSFMyNTYiLCAidHlwIjogIkpXVCJ9.eyJzdWIiOiAiMTIzNDU2Nzg5MCIsICJuYW1lIjogIkphbmUifQ.t3mlCFmHGkDXOiDz5bk353EWmuoPH_XN2jf74yUppEs"
        ),
        " end",
    ),
    (
        Kind::PrivateKey,
        "cat key\n",
        concat!(
            "-----BEGIN",
            " RSA PRIVATE KEY-----\nNkWbA8qqwqjhq9xFmaRm9aBay6OV+3ymwI/JujpmXA3sa+CVI9H/R5t7gU7YwSXl\n9c3WErgrN3+1VRbMqdw2BTKEcXHkv8jtTbAM9zWX1Cs7SLKfr+lp97LzMeDnoyKZ\nFjoLrzdUfFlRqdrsds9eX93KDmXm2w==\n-----END RSA PRIVATE KEY-----"
        ),
        "\nend",
    ),
    (
        Kind::PrivateKey,
        "",
        concat!(
            "-----BEGIN",
            " EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nNkWbA8qqwqjhq9xFmaRm9aBay6OV+3ymwI/JujpmXA3sa+CVI9H/R5t7gU7YwSXl\n9c3WErgrN3+1VRbMqdw2BTKEcXHkv8jtTbAM9zWX1Cs7SLKfr+lp97LzMeDnoyKZ\nFjoLrzdUfFlRqdrsds9eX93KDmXm2w==\n-----END EC PRIVATE KEY-----"
        ),
        "\nend",
    ),
    (
        Kind::PrivateKey,
        "only ",
        concat!("-----BEGIN", " OPENSSH PRIVATE KEY-----"),
        " and nothing more",
    ),
    (
        Kind::PrivateKey,
        "PuTTY\n",
        concat!(
            "Private-",
            "Lines: 2\nNkWbA8qqwqjhq9xFmaRm9aBay6OV+3ymwI/JujpmXA3sa+CVI9H/R5t7gU7YwSXl\n9c3WErgrN3+1VRbMqdw2BTKEcXHkv8jtTbAM9zWX1Cs7SLKfr+lp97LzMeDnoyKZ\nFjoLrzdUfFlRqdrsds9eX93KDmXm2w=="
        ),
        "\nPrivate-MAC: 00",
    ),
    (
        Kind::PrivateKey,
        "",
        concat!("AGE-SE", "CRET-KEY-1CQDD3YXTH5VA8SL5CE8KKATN9G580N8THFC6GCMTLT2LJGT5URKQLGVCL6"),
        " end",
    ),
    (
        Kind::PgpPrivateKey,
        "",
        concat!(
            "-----BEGIN",
            " PGP PRIVATE KEY BLOCK-----\n\nNkWbA8qqwqjhq9xFmaRm9aBay6OV+3ymwI/JujpmXA3sa+CVI9H/R5t7gU7YwSXl\n9c3WErgrN3+1VRbMqdw2BTKEcXHkv8jtTbAM9zWX1Cs7SLKfr+lp97LzMeDnoyKZ\nFjoLrzdUfFlRqdrsds9eX93KDmXm2w==\n=aB3d\n-----END PGP PRIVATE KEY BLOCK-----"
        ),
        " end",
    ),
    (
        Kind::GcpServiceKey,
        "{\"type\": \"service_account\", \"project_id\": \"p\", \"private_key\": \"",
        concat!(
            "-----BEGIN",
            " PRIVATE KEY-----\\nNkWbA8qqwqjhq9xFmaRm9aBay6OV+3ymwI/JujpmXA3sa+CVI9H/R5t7gU7YwSXl\\n9c3WErgrN3+1VRbMqdw2BTKEcXHkv8jtTbAM9zWX1Cs7SLKfr+lp97LzMeDnoyKZ\\nFjoLrzdUfFlRqdrsds9eX93KDmXm2w==\\n-----END PRIVATE KEY-----"
        ),
        "\\n\", \"x\": 1}",
    ),
    (Kind::UrlPassword, "postgres://app:", concat!("s3c", "r3t-pw"), "@db.internal:5432/x"),
    (Kind::UrlPassword, "redis://:", concat!("p@s", "s"), "@cache/0"),
    (Kind::AssignedSecret, "password = \"", concat!("cor", "rect7horse!"), "\""),
    (Kind::AssignedSecret, "DB_PASSWORD=", concat!("Som", "mer2024"), " \n"),
    (
        Kind::AssignedSecret,
        "{\"api_key\": \"",
        concat!("hvq", "jrsva5a1omei2heyiantalnnvzw7a"),
        "\"}",
    ),
    (
        Kind::AssignedSecret,
        "Authorization: Bearer ",
        concat!("7Hn", "YqNYqm2mkSYDR6lrfmFJt2SGMtq5St7npFDpl"),
        "\n",
    ),
    (Kind::AssignedSecret, "Authorization: Basic ", concat!("YWR", "taW46aHVudGVyMjI="), "\n"),
    (Kind::AssignedSecret, "пароль: ", concat!("hun", "ter22"), ", ok"),
    (Kind::PaymentCard, "card ", concat!("41", "11 1111 1111 1111"), " 12/27"),
    (Kind::PaymentCard, "", concat!("55", "55555555554444"), " end"),
    (Kind::Iban, "to ", concat!("DE", "89 3704 0044 0532 0130 00"), " end"),
    (Kind::Iban, "", concat!("gb", "82west12345698765432"), ","),
    (Kind::UsSsn, "", concat!("12", "3-45-6789"), " end"),
    (Kind::UsSsn, "SSN: ", concat!("12", "3456789"), " end"),
    (Kind::CnResidentId, "", concat!("11", "010519491231002X"), " end"),
    (Kind::FrNir, "", concat!("1 ", "85 05 78 006 084 91"), " end"),
    (Kind::PlPesel, "PESEL ", concat!("44", "051401359"), " end"),
    (Kind::BrCpf, "", concat!("52", "9.982.247-25"), " end"),
    (Kind::DeTaxId, "", concat!("86", " 095 742 719"), " end"),
    (Kind::InAadhaar, "", concat!("23", "41 2341 2346"), " end"),
    (Kind::NlBsn, "BSN ", concat!("11", "1222333"), " end"),
    (Kind::EsDni, "", concat!("12", "345678Z"), " end"),
    (Kind::EsDni, "NIE ", concat!("X1", "234567L"), " end"),
    (Kind::UkNino, "", concat!("AB", " 12 34 56 C"), " end"),
    (Kind::UkNino, "", concat!("AB", "123456C"), ""),
    (Kind::ItFiscalCode, "", concat!("RS", "SMRA85T10A562S"), " end"),
    (Kind::Email, "to ", concat!("ja", "ne.doe@example.org"), ". end"),
    (Kind::Phone, "call ", concat!("+1", " (415) 555-2671"), " now"),
];
