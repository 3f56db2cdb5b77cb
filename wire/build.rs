//! Generates the admin API and the introductions from `proto/`.
//!
//! protox compiles the schema in Rust, so that no protoc has to be installed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let schema = protox::compile(["proto/admin.proto", "proto/mesh.proto"], ["proto"])?;
    // Payload fields become `Bytes`: a chunk travels from the socket to the disk without being copied.
    tonic_prost_build::configure().bytes(".").compile_fds(schema)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
