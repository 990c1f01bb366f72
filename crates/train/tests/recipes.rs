//! The recipes of the repository are complete, and what they cost is what is published.

use std::path::Path;
use zamba_data::fs::RealFs;
use zamba_train::{Recipe, dry_run};

fn load(name: &str) -> Recipe {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name);
    Recipe::load(&RealFs, &path, &[]).unwrap()
}

#[test]
fn every_recipe_resolves_and_reads_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".toml") {
            continue;
        }
        let recipe = load(&name);
        let plan = dry_run(&recipe, &RealFs).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(plan.phases.len() == 2 && plan.steps > 0, "{name}");
        // What is stored in a checkpoint is the same recipe with every default written out.
        let stored = toml::to_string(&recipe).unwrap();
        let back = Recipe::parse(&stored, Path::new("stored.toml"), &[]).unwrap();
        assert_eq!(Recipe { base: recipe.base.clone(), ..back }, recipe, "{name}");
        count += 1;
    }
    assert!(count >= 3);
}

#[test]
fn the_7b_recipe_is_the_papers() {
    let d = dry_run(&load("zamba-7b.toml"), &RealFs).unwrap();
    assert_eq!(d.parameters, 7_232_490_496);
    // f32 master, two moments, gradients, bf16 copy.
    assert_eq!(d.state_bytes, 7_232_490_496 * 18);
    assert!((d.flops_per_token / 65.73e9 - 1.0).abs() < 2e-3, "{}", d.flops_per_token);
    assert!((d.tokens as f64 / 1e12 - 1.0).abs() < 1e-4, "{}", d.tokens);
    let [pretrain, anneal] = &d.phases[..] else { panic!("two phases") };
    assert!((pretrain.lr[2] - 7.5e-5).abs() < 1e-12);
    assert!((anneal.lr[1] - 1.1e-4).abs() < 1e-12 && (anneal.lr[2] - 1e-7).abs() < 1e-15);
}
