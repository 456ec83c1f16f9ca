//! Generates the messages, the client and the server trait from `proto/agent.proto`.

use std::path::Path;

use ttrpc_codegen::Codegen;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto/agent.proto");
    Codegen::new().input("proto/agent.proto").include("proto").rust_protobuf().run()?;

    // The generated files start with inner attributes, so they have to be modules of their own.
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("modules.rs"), "pub mod agent;\npub mod agent_ttrpc;\n")?;
    Ok(())
}
