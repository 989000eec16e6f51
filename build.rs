//! Compiles the stand-in for NVIDIA's library (`src/simulate/driver`), which the program carries with it.
//!
//! It needs a C compiler, `cc` or what `CC` names. Where there is none, or it makes programs for another kind
//! of machine than this one, the program is built all the same and can only not simulate GPUs.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCES: &str = "src/simulate/driver";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={SOURCES}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CC");
    let library =
        PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("libnvidia-ml.so.1");
    if let Err(why) = compile(&library) {
        println!("cargo:warning=this build cannot simulate GPUs: {why}");
        fs::write(&library, [])?;
    }
    Ok(())
}

fn compile(library: &Path) -> Result<(), Box<dyn Error>> {
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return Err("the stand-in is for Linux".into());
    }
    let named = env::var_os("CC");
    if named.is_none() && env::var_os("TARGET") != env::var_os("HOST") {
        return Err("CC names no compiler for the target".into());
    }
    let compiler = named.unwrap_or_else(|| "cc".into());
    let output = Command::new(&compiler)
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread", "-o"])
        .arg(library)
        .arg(Path::new(SOURCES).join("library.c"))
        .arg("-ldl")
        .output()
        .map_err(|error| format!("{}: {error}", compiler.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().find(|line| line.contains("error")).unwrap_or("the compiler failed").into())
}
