//! Generates the admin API and the introductions from `proto/`.
//!
//! Also leaves the compiled schema where `tests/schema.rs` finds it.
//!
//! protox compiles the schema in Rust, so that no protoc has to be installed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let schema = protox::compile(["proto/admin.proto", "proto/mesh.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("schema.bin"), schema.encode_to_vec())?;
    // Payload fields become `Bytes`: a chunk travels from the socket to the disk without being copied.
    tonic_prost_build::configure().bytes(".").compile_fds(schema)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
