//! `cargo xtask gen`: writes the checked-in code anew.

fn main() -> anyhow::Result<()> {
    let target = sightline_codegen::checked_in();
    std::fs::remove_dir_all(&target).ok();
    sightline_codegen::generate(&target)?;
    sightline_codegen::generate_example(&sightline_codegen::example().join("gen"))
}
