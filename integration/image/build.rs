//! Passes the image's linker script and link options, and only for the bootable image.
//!
//! A host build of this package (library, unit tests, clippy) has no `bare-metal` feature and links like any other
//! crate.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CARGO_FEATURE_BARE_METAL");
    if env::var_os("CARGO_FEATURE_BARE_METAL").is_none() {
        return;
    }
    let dir = env::var("CARGO_MANIFEST_DIR").expect("cargo always sets CARGO_MANIFEST_DIR");
    let os = env::var("CARGO_CFG_TARGET_OS").expect("cargo always sets CARGO_CFG_TARGET_OS");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo always sets CARGO_CFG_TARGET_ARCH");
    let folder = match (os.as_str(), arch.as_str()) {
        ("none", "x86_64") => "x86",
        ("none", "aarch64") => "arm",
        _ => {
            println!(
                "cargo:warning=feature `bare-metal` links a bootable image only for --target x86_64-unknown-none or \
                 aarch64-unknown-none"
            );
            return;
        }
    };
    let script = format!("{dir}/src/{folder}/boot/link.ld");
    println!("cargo:rerun-if-changed={script}");
    for arg in [
        "-no-pie".to_owned(),
        format!("-T{script}"),
        "--gc-sections".to_owned(),
        "-zmax-page-size=4096".to_owned(),
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
