//! The model and the recipe of a demo: a file that `zamba train` runs as well.

use anyhow::Context;
use serde::Serialize;
use zamba::ZambaConfig;
use zamba::config::LayerKind;
use zamba_train::Recipe;

use super::corpus::Part;
use super::folder::Folder;

/// Tokens per row.
pub(super) const SEQUENCE: usize = 256;
/// Rows per step. Small, because a short run needs many steps more than smooth ones.
pub(super) const BATCH: usize = 2;
/// Tokens that documents are scored in one piece; also what the exported models claim to read.
pub(super) const CONTEXT: usize = 2048;

/// Highest learning rate of phase 1.
const PEAK: f64 = 3e-3;
/// The paper's rates relative to its peak of 1.5e-4 (arXiv 2405.16712, section II-C): cosine to 7.5e-5, then up
/// to 1.1e-4 and exponentially down to 1e-7.
const COSINE_END: f64 = 7.5e-5 / 1.5e-4;
const REWARM: f64 = 1.1e-4 / 1.5e-4;
const EXPONENTIAL_END: f64 = 1e-7 / 1.5e-4;
/// The paper's share of phase 1 data in phase 2.
const REPLAY: f64 = 0.6;
/// Part of the steps that anneal.
const ANNEALING: f64 = 0.25;
/// Longest warm-up in steps.
const WARMUP: u64 = 100;

/// The model: as published, but small.
pub(super) fn model(vocabulary: u32) -> anyhow::Result<ZambaConfig> {
    ZambaConfig::from_json(&model_json(vocabulary).to_string()).context("the model of the demo")
}

/// Everything that differs from the published model, or is wanted in sight.
fn model_json(vocabulary: u32) -> serde_json::Value {
    serde_json::json!({
        "model_type": "zamba",
        "vocab_size": vocabulary,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "n_mamba_heads": 2,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "mamba", "mamba", "mamba", "hybrid"],
        "mamba_d_state": 16,
        // The published 0.02 is for wide layers; near the root of 1 / 256, a narrow model gets going much sooner.
        "initializer_range": 0.06,
        "mamba_dt_rank": 16,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    })
}

/// The model in numbers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ModelCounts {
    pub(super) parameters: u64,
    pub(super) layers: usize,
    pub(super) hybrid_layers: Vec<usize>,
    pub(super) hidden_size: usize,
    pub(super) vocabulary: usize,
}

pub(super) fn describe(config: &ZambaConfig) -> ModelCounts {
    let kinds = config.layers_block_type.iter().enumerate();
    ModelCounts {
        parameters: config.parameters(),
        layers: config.num_hidden_layers,
        hybrid_layers: kinds.filter(|(_, kind)| **kind == LayerKind::Hybrid).map(|(i, _)| i).collect(),
        hidden_size: config.hidden_size,
        vocabulary: config.vocab_size,
    }
}

/// Writes the recipe and reads it back.
pub(super) fn write(folder: &Folder, vocabulary: u32, seed: u64, steps: u64) -> anyhow::Result<Recipe> {
    let text = recipe(vocabulary, seed, steps);
    let recipe = Recipe::parse(&text, &folder.recipe(), &[]).context("the recipe of the demo")?;
    folder.replace(&folder.recipe(), text.as_bytes())?;
    Ok(recipe)
}

/// Steps of the two phases; each has at least one.
fn phases(steps: u64) -> [u64; 2] {
    let anneal = ((steps as f64 * ANNEALING).round() as u64).max(1);
    [steps - anneal, anneal]
}

/// The recipe of a run of at least two steps, as a person would write it.
fn recipe(vocabulary: u32, seed: u64, steps: u64) -> String {
    let [pretrain, anneal] = phases(steps);
    let warmup = |steps: u64| (steps / 10).clamp(1, WARMUP);
    let mut model = String::new();
    // Strings, numbers and lists of strings are written the same in JSON and in TOML.
    for (key, value) in model_json(vocabulary).as_object().into_iter().flatten() {
        model.push_str(&format!("{key} = {value}\n"));
    }
    let (text, prose) = (Part::Text.train_shard(), Part::DocProse.train_shard());
    format!(
        "# The run of `zamba demo`. Change what you like and run it again:\n\
         #   zamba train recipe.toml --out another-run\n\
         seed = {seed}\n\
         tokenizer = \"tokenizer/tokenizer.json\"\n\
         sequence = {SEQUENCE}\n\
         micro_batch = {BATCH}\n\
         global_batch = {BATCH}\n\
         checkpoint_every = 1000\n\
         keep = 2\n\n\
         [model]\n{model}\n\
         [[phase]]\n\
         name = \"pretrain\"\n\
         steps = {pretrain}\n\
         peak = {PEAK:e}\n\
         warmup = {}\n\
         schedule = {{ kind = \"cosine\", end = {:.4e} }}\n\
         sources = [{{ name = \"text\", path = \"data/{text}\", weight = 1.0 }}]\n\n\
         # Annealing on better text, with most of the data from before; rates relative to the peak as in the paper.\n\
         [[phase]]\n\
         name = \"anneal\"\n\
         steps = {anneal}\n\
         peak = {:.4e}\n\
         warmup = {}\n\
         warmup_from = \"previous\"\n\
         schedule = {{ kind = \"exponential\", end = {:.4e}, gamma = 0.25 }}\n\
         sources = [{{ name = \"doc-prose\", path = \"data/{prose}\", weight = 1.0 }}]\n\
         replay = {{ phase = \"pretrain\", fraction = {REPLAY} }}\n",
        warmup(pretrain),
        PEAK * COSINE_END,
        PEAK * REWARM,
        warmup(anneal),
        PEAK * EXPONENTIAL_END,
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use zamba_data::fs::FaultFs;

    use super::*;

    #[test]
    fn recipes_of_any_length_are_valid_and_mean_the_model() {
        for steps in [2, 3, 4, 5, 19, 400, 1_000_000] {
            let recipe = Recipe::parse(&recipe(4096, 7, steps), Path::new("/x/recipe.toml"), &[]).unwrap();
            let sum: u64 = recipe.phase.iter().map(|phase| phase.steps.unwrap()).sum();
            assert_eq!((sum, recipe.seed, recipe.phase.len()), (steps, 7, 2));
            zamba_train::recipe::Plan::new(&recipe).unwrap();
            assert_eq!(recipe.model_config(&FaultFs::new()).unwrap(), model(4096).unwrap());
        }
    }

    #[test]
    fn the_model_has_some_millions_of_parameters() {
        let counts = describe(&model(4096).unwrap());
        assert!((5_000_000..10_000_000).contains(&counts.parameters), "{}", counts.parameters);
        assert_eq!(counts.hybrid_layers, [2, 7]);
    }
}
