//! Secrets: digests of the keys callers use, and the keys that servers want from us.
//!
//! A caller's key never stands in a file, only its SHA-256; no message here repeats what was written
//! where a key may stand.

use super::{
    KeyDigest,
    load::Surroundings,
    problem::Spot,
    read::{Section, Text},
    source,
};
use std::{
    collections::HashMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Most keys of one tenant.
const KEYS_MAX: usize = 1024;
/// Longest API key of a server.
const API_KEY_MAX_BYTES: usize = 4096;

const DIGEST_REMEDY: &str =
    "make a key and its digest with `berthd key`; only the digest, 64 hex digits, is kept";

/// Whose each digest is, and where it stands.
#[derive(Default)]
pub(super) struct KeyOwners(HashMap<KeyDigest, (String, Spot)>);

/// All digests of a tenant, from the list and from the file.
pub(super) fn of_tenant(
    section: &mut Section<'_>,
    tenant: &str,
    owners: &mut KeyOwners,
    surroundings: &Surroundings,
) -> Vec<KeyDigest> {
    for plain in ["key", "keys", "api_key", "api_keys"] {
        section.refuse(plain, "plain keys are not kept in configuration", DIGEST_REMEDY);
    }
    let (mut keys, mut listed) = (Vec::new(), 0_usize);
    let given = section.holds("keys_sha256") || section.holds("keys_file");
    for Text { text, key, at } in section.texts("keys_sha256", KEYS_MAX) {
        listed += 1;
        add(section, tenant, owners, &mut keys, text, &key, at);
    }
    if let Some(Text { text, key, .. }) = section.text("keys_file")
        && let Some(path) = secret_path(section, "keys_file", text, surroundings)
        && let Some(lines) = read_secret(section, "keys_file", &path)
    {
        let file: Arc<str> = path.display().to_string().into();
        for (position, line) in lines.lines().enumerate() {
            let digest = line.split('#').next().unwrap_or_default().trim();
            if !digest.is_empty() {
                listed += 1;
                let at = Spot::new(&file, position + 1);
                add(section, tenant, owners, &mut keys, digest, &key, &at);
            }
        }
    }
    if keys.len() > KEYS_MAX {
        let what = format!("{} keys; at most {KEYS_MAX} are allowed", keys.len());
        section.error("keys_file", what, "remove digests that are no longer used");
        keys.truncate(KEYS_MAX);
    }
    if !given {
        section.missing("keys_sha256", DIGEST_REMEDY);
    } else if listed == 0 {
        let key = if section.holds("keys_file") { "keys_file" } else { "keys_sha256" };
        section.warn(key, "no digest: this tenant cannot call", DIGEST_REMEDY);
    }
    keys
}

fn add(
    section: &Section<'_>,
    tenant: &str,
    owners: &mut KeyOwners,
    keys: &mut Vec<KeyDigest>,
    text: &str,
    key: &str,
    at: &Spot,
) {
    let Some(digest) = digest(text) else {
        section.report.error(at, key, "not a SHA-256 digest (64 hex digits)", DIGEST_REMEDY);
        return;
    };
    match owners.0.get(&digest) {
        Some((owner, other)) if owner == tenant => {
            let what = format!("the same digest stands at {other}");
            section.report.warn(at, key, what, "remove one of them");
        }
        Some((owner, other)) => {
            let what = format!("the same digest belongs to tenant `{owner}` at {other}");
            section.report.error(at, key, what, "give each tenant a key of its own");
        }
        None => {
            owners.0.insert(digest, (tenant.to_owned(), at.clone()));
            keys.push(digest);
        }
    }
}

fn digest(text: &str) -> Option<KeyDigest> {
    let mut digest: KeyDigest = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let mut value = 0;
        for letter in pair {
            value = value * 16 + char::from(*letter).to_digit(16)?;
        }
        *byte = u8::try_from(value).ok()?;
    }
    Some(digest)
}

/// The API key that a server wants from us.
pub(super) fn of_server(section: &mut Section<'_>, surroundings: &Surroundings) -> Option<String> {
    section.refuse(
        "api_key",
        "plain keys are not kept in configuration",
        "put the key into a file of its own and name that in `api_key_file`",
    );
    let named = section.text("api_key_file")?.text;
    let path = secret_path(section, "api_key_file", named, surroundings)?;
    if !named.starts_with(CREDENTIAL) && readable_by_all(&path) {
        let what = format!("any user of this host may read {}", path.display());
        section.warn("api_key_file", what, "chmod o-rwx it");
    }
    let text = read_secret(section, "api_key_file", &path)?;
    let key = text.trim();
    let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
    if key.is_empty() || key.len() > API_KEY_MAX_BYTES || !visible {
        let what = format!("{} does not hold an API key", path.display());
        section.error("api_key_file", what, "write the key alone into it: one line, visible ASCII");
        return None;
    }
    Some(key.to_owned())
}

/// The text of a key file; a fault is told at the key that names the file.
fn read_secret(section: &Section<'_>, name: &str, path: &Path) -> Option<String> {
    match source::text_of(path) {
        Ok(text) => Some(text),
        Err(unread) => {
            let what = format!("{}: {}", path.display(), unread.what);
            section.error(name, what, unread.remedy);
            None
        }
    }
}

fn readable_by_all(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o004 != 0)
}

/// What stands before the name of a systemd credential.
const CREDENTIAL: &str = "credential:";

/// The path of a secret: a file, or a credential that systemd hands over.
fn secret_path(
    section: &Section<'_>,
    name: &str,
    written: &str,
    surroundings: &Surroundings,
) -> Option<PathBuf> {
    let Some(credential) = written.strip_prefix(CREDENTIAL) else {
        return Some(surroundings.path(written));
    };
    if credential.is_empty() || credential.contains('/') || credential.starts_with('.') {
        section.error(
            name,
            format!("{credential:?} is not a credential's name"),
            "write `credential:name`",
        );
        return None;
    }
    match &surroundings.credentials {
        Some(folder) => Some(folder.join(credential)),
        None => {
            let what =
                format!("the service manager handed over no credentials, so no `{credential}`");
            let remedy =
                format!("add LoadCredential={credential}:/path to the unit, or name a file");
            section.error(name, what, remedy);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_sixty_four_hex_digits_in_either_case() {
        let hex = "00ff".to_owned() + &"aB".repeat(30);
        let read = digest(&hex).unwrap();
        assert_eq!((read[0], read[1], read[2], read[31]), (0, 0xff, 0xab, 0xab));
        for wrong in
            ["", hex.get(1..).unwrap(), &format!("{hex}0"), &hex.replace('f', "g"), &"é".repeat(32)]
        {
            assert_eq!(digest(wrong), None, "{wrong}");
        }
    }
}
