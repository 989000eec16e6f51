//! `berthd key`: makes an API key.

use super::{Failure, print};
use crate::{config::KeyDigest, pipeline::auth::digest};
use std::fmt::Write;

/// A fresh key: `sk-berthd-` and 192 random bits in hex.
pub fn fresh() -> Result<String, Failure> {
    let mut random = [0u8; 24];
    getrandom::fill(&mut random).map_err(Failure::internal)?;
    Ok(format!("sk-berthd-{}", hex(&random)))
}

/// Bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The digest of a key, as the configuration holds it.
pub fn digest_hex(key: &str) -> String {
    let digest: KeyDigest = digest(key.as_bytes());
    hex(&digest)
}

/// Prints a key and its digest.
pub fn run() -> Result<(), Failure> {
    let key = fresh()?;
    let text = format!(
        "key     {key}\ndigest  {}\n\nGive the key to its owner; it is stored nowhere. Put the digest into the configuration:\n\n  [[tenants]]\n  name = \"team-a\"\n  keys_sha256 = [\"{}\"]\n",
        digest_hex(&key),
        digest_hex(&key)
    );
    print(text.as_bytes())
}
