//! Introductions: how sheep that know each other's admin address find each other's mesh. Generated.

#![allow(missing_docs, reason = "generated from mesh.proto, which is commented")]

tonic::include_proto!("sheepdog.mesh.v1");
