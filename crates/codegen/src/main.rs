//! `cargo xtask gen`: writes the checked-in code anew.

fn main() -> anyhow::Result<()> {
    let (services, wire) = (sightline_codegen::checked_in(), sightline_codegen::wire());
    for target in [&services, &wire] {
        std::fs::remove_dir_all(target).ok();
    }
    sightline_codegen::generate(&services)?;
    sightline_codegen::generate_wire(&wire)?;
    sightline_codegen::generate_example(&sightline_codegen::example().join("gen"))
}
