//! The data that a recipe names, opened and checked against the model.

use crate::recipe::{Plan, Recipe};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use zamba::config::ZambaConfig;
use zamba_data::fs::Fs;
use zamba_data::mix::{Mixture, PhaseSpec, Replay, Source, SourceWeight};
use zamba_data::shards::Shard;

/// Why the data of a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A shard or mixture is refused.
    #[error("recipe key `{key}`: {source}")]
    Data {
        /// The recipe's key.
        key: String,
        /// Why.
        source: zamba_data::Error,
    },
    /// Token ids that the model has no embedding for.
    #[error(
        "recipe key `{key}`: the tokens go up to {tokens} and the model's vocab_size is {model}; use the tokenizer's model or tokenise again"
    )]
    Vocabulary {
        /// The recipe's key.
        key: String,
        /// Vocabulary of the shards.
        tokens: u32,
        /// Vocabulary of the model.
        model: usize,
    },
    /// Shards of another tokenizer than the recipe's.
    #[error("recipe key `{key}`: tokenised with another tokenizer than {tokenizer}; tokenise again")]
    Tokenizer {
        /// The recipe's key.
        key: String,
        /// The recipe's tokenizer.
        tokenizer: PathBuf,
    },
}

/// Held-out shards by name.
pub type EvalShards = Vec<(String, Shard)>;

/// Opens and verifies everything that the phases and the evaluation read. `tokenizer_sha256` is the hash
/// of the recipe's tokenizer, if it has one.
///
/// # Errors
/// If something is missing, damaged, or does not fit the model.
pub fn open(
    recipe: &Recipe,
    plan: &Plan,
    config: &ZambaConfig,
    fs: &Arc<dyn Fs>,
    tokenizer_sha256: Option<&str>,
) -> Result<(Arc<Mixture>, EvalShards), DataError> {
    let check = |key: &str, shard: &Shard| check_shard(recipe, config, tokenizer_sha256, key, shard);
    let mut sources: BTreeMap<&str, Source> = BTreeMap::new();
    for phase in &recipe.phase {
        for spec in phase.sources.iter() {
            if sources.contains_key(spec.name.as_str()) {
                continue;
            }
            let key = format!("phase.{}.sources.{}", phase.name, spec.name);
            let paths: Vec<PathBuf> = spec.paths.as_slice().iter().map(|p| recipe.resolve(p)).collect();
            let source = Source::open(fs, &spec.name, &paths);
            let source = source.map_err(|source| DataError::Data { key: key.clone(), source })?;
            source.shards.iter().try_for_each(|shard| check(&key, shard))?;
            sources.insert(&spec.name, source);
        }
    }
    let phases: Vec<PhaseSpec> = recipe
        .phase
        .iter()
        .zip(&plan.phases)
        .map(|(phase, plan)| PhaseSpec {
            name: phase.name.clone(),
            samples: plan.schedule.steps * recipe.global_batch as u64,
            sources: phase
                .sources
                .iter()
                .map(|s| SourceWeight { source: s.name.clone(), weight: s.weight, max_epochs: s.max_epochs })
                .collect(),
            replay: phase.replay.as_ref().map(|r| Replay { phase: r.phase.clone(), fraction: r.fraction }),
        })
        .collect();
    let mixture = Mixture::new(sources.into_values().collect(), &phases, recipe.seed, recipe.sequence)
        .map_err(|source| DataError::Data { key: "phase".into(), source })?;

    let mut eval = Vec::new();
    for (name, path) in recipe.eval.iter().flat_map(|e| &e.shards) {
        let key = format!("eval.shards.{name}");
        let shard = Shard::open(fs.clone(), &recipe.resolve(path));
        let shard = shard.map_err(|source| DataError::Data { key: key.clone(), source })?;
        check(&key, &shard)?;
        eval.push((name.clone(), shard));
    }
    Ok((Arc::new(mixture), eval))
}

fn check_shard(
    recipe: &Recipe,
    config: &ZambaConfig,
    tokenizer_sha256: Option<&str>,
    key: &str,
    shard: &Shard,
) -> Result<(), DataError> {
    let (tokens, model) = (shard.vocab_size(), config.vocab_size);
    if tokens as usize > model {
        return Err(DataError::Vocabulary { key: key.into(), tokens, model });
    }
    let stated = shard.manifest().tokenizer_sha256.as_str();
    match (tokenizer_sha256, &recipe.tokenizer) {
        (Some(own), Some(tokenizer)) if !stated.is_empty() && stated != own => {
            Err(DataError::Tokenizer { key: key.into(), tokenizer: tokenizer.clone() })
        }
        _ => Ok(()),
    }
}
