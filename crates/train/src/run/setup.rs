//! From a recipe to a run that is ready to go, and what it would cost.

use super::{Job, Run, TrainError};
use crate::ckpt::{self, Manifest, sha256_hex};
use crate::data;
use crate::log::RunLog;
use crate::mfu;
use crate::recipe::{Compute, Plan, Recipe, RecipeError, differences, trajectory, trajectory_sha256};
use crate::saver::Saver;
use crate::state::RunState;
use crate::step;
use serde_json::Value;
use std::path::{Path, PathBuf};
use zamba::{Workspace, ZambaConfig};
use zamba_data::fs::Fs;
use zamba_kernels::Dtype;

/// Files beside `tokenizer.json` that belong to a tokenizer.
const TOKENIZER_NEIGHBOURS: [&str; 3] =
    ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

impl<'a> Run<'a> {
    pub(super) fn open(job: Job<'a>) -> Result<Run<'a>, TrainError> {
        let Job { recipe, out, resume, fs, device, stop, observer } = job;
        let plan = Plan::new(recipe)?;
        let config = recipe.model_config(&*fs)?;
        let files = companions(recipe, &*fs)?;
        let tokenizer = files.iter().find(|(n, _)| n == "tokenizer.json").map(|(_, b)| sha256_hex(b));
        let (mixture, eval_shards) = data::open(recipe, &plan, &config, &fs, tokenizer.as_deref())?;

        let found = ckpt::newest(&*fs, out, &mut |text| observer.note(&text))?;
        let state = match found {
            Some((_, manifest)) if !resume => {
                return Err(TrainError::Occupied { path: out.to_owned(), step: manifest.head.step });
            }
            Some((dir, manifest)) => {
                observer.note(&format!("resuming from {}", dir.display()));
                if let Err(e) = ckpt::settle(&*fs, out, &dir, recipe.keep) {
                    observer.note(&e.to_string());
                }
                let (state, old) = RunState::load(&*fs, &dir, &manifest, &config, &*device)?;
                check_same(recipe, &config, &plan, &manifest, &old)?;
                let (phase, _) = plan.place(state.step.saturating_sub(1));
                if mixture.fingerprint(phase) != manifest.head.data_sha256 {
                    return Err(TrainError::DataChanged { phase: manifest.head.phase });
                }
                state
            }
            None => {
                if resume {
                    observer.note("no checkpoint to resume from: starting at step 0");
                }
                RunState::new(&config, &*device, recipe.seed)
            }
        };

        let format = match recipe.compute {
            Compute::F32 => Dtype::F32,
            Compute::Bf16 => Dtype::Bf16,
        };
        let model = step::model(&config, &device, format, &state);
        let log = RunLog::open(fs.clone(), out, state.step).map_err(|source| TrainError::Io {
            what: "open the log in",
            path: out.to_owned(),
            source,
        })?;
        Ok(Run {
            grads: device.alloc(Dtype::F32, state.weights.len()),
            workspace: Workspace::new(device.clone()),
            saver: Saver::new(fs.clone(), out.to_owned(), recipe.keep),
            saved: (state.step > 0).then_some(state.step),
            seconds: log.seconds(),
            flops_per_token: mfu::train_flops(&config, recipe.sequence),
            rows: None,
            evals: Vec::new(),
            recipe,
            plan,
            fs,
            out,
            stop,
            observer,
            device,
            model,
            config,
            state,
            mixture,
            eval_shards,
            files,
            log,
        })
    }
}

/// Refuses a recipe that would continue another trajectory than the checkpoint's.
fn check_same(
    recipe: &Recipe,
    config: &ZambaConfig,
    plan: &Plan,
    manifest: &Manifest,
    old: &Value,
) -> Result<(), TrainError> {
    let (phase, _) = plan.place(manifest.head.step.saturating_sub(1));
    let new = trajectory(recipe, config, plan, phase);
    if trajectory_sha256(&new) == manifest.head.config_sha256 {
        return Ok(());
    }
    // Keys that differ, or all of them if the checkpoint is of another version.
    let keys = differences(old, &new).join(", ");
    Err(TrainError::RecipeChanged { keys: if keys.is_empty() { "its layout".into() } else { keys } })
}

/// Tokenizer files and the resolved recipe, as they go into every checkpoint.
fn companions(recipe: &Recipe, fs: &dyn Fs) -> Result<Vec<(String, Vec<u8>)>, TrainError> {
    let mut files = Vec::new();
    if let Some(path) = &recipe.tokenizer {
        let path = recipe.resolve(path);
        let read = |path: &Path| {
            fs.read(path).map_err(|source| RecipeError::Read {
                key: "tokenizer",
                path: path.to_owned(),
                source,
            })
        };
        files.push(("tokenizer.json".into(), read(&path)?));
        for name in TOKENIZER_NEIGHBOURS {
            let neighbour: PathBuf = path.with_file_name(name);
            if fs.exists(&neighbour).unwrap_or(false) {
                files.push((name.into(), read(&neighbour)?));
            }
        }
    }
    let text = toml::to_string(recipe)
        .map_err(|e| RecipeError::Value { key: "recipe".into(), problem: e.to_string() })?;
    files.push(("state/recipe.toml".into(), text.into_bytes()));
    Ok(files)
}

/// What a recipe would do and cost; nothing is allocated or opened but the model's configuration.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DryRun {
    /// The recipe with every default in place.
    pub recipe: Recipe,
    /// The model's configuration.
    pub config: Value,
    /// Numbers in all weights.
    pub parameters: u64,
    /// Bytes of master weights, moments, gradients and the copy that computes.
    pub state_bytes: u64,
    /// Bytes of one checkpoint on disk.
    pub checkpoint_bytes: u64,
    /// Bytes of host memory for the copy that is saved in the background.
    pub snapshot_bytes: u64,
    /// Bytes of activations of one micro-batch, estimated from the widths of what is kept for the
    /// backward pass; a guide to choosing `micro_batch`, not a promise.
    pub activation_bytes_estimate: u64,
    /// Operations of a training step per token.
    pub flops_per_token: f64,
    /// Phases with their first step, steps and tokens.
    pub phases: Vec<DryPhase>,
    /// Steps of the run.
    pub steps: u64,
    /// Tokens of the run.
    pub tokens: u64,
    /// Operations of the run.
    pub flops: f64,
}

/// A phase of a [`DryRun`].
#[derive(Clone, Debug, serde::Serialize)]
pub struct DryPhase {
    /// Name.
    pub name: String,
    /// Step of the run at which it begins.
    pub start: u64,
    /// Steps.
    pub steps: u64,
    /// Tokens.
    pub tokens: u64,
    /// Rates of its first step, its peak, and its end.
    pub lr: [f64; 3],
}

/// Resolves a recipe without running it.
///
/// # Errors
/// If the recipe or its model is refused.
pub fn dry_run(recipe: &Recipe, fs: &dyn Fs) -> Result<DryRun, RecipeError> {
    let plan = Plan::new(recipe)?;
    let config = recipe.model_config(fs)?;
    let parameters = config.parameters();
    let compute = if recipe.compute == Compute::Bf16 { 2 } else { 4 };
    let published = config.dtype.size() as u64;
    let master = if published == 4 { 0 } else { 4 };
    let flops_per_token = mfu::train_flops(&config, recipe.sequence);
    let tokens = plan.steps() * recipe.tokens_per_step();
    let phases = plan.phases.iter().map(|p| DryPhase {
        name: p.name.clone(),
        start: p.start,
        steps: p.schedule.steps,
        tokens: p.schedule.steps * recipe.tokens_per_step(),
        lr: [p.schedule.at(0), p.schedule.peak, p.schedule.at(p.schedule.steps)],
    });
    Ok(DryRun {
        recipe: recipe.clone(),
        // The configuration is plain JSON that this program wrote.
        config: serde_json::from_str(&config.to_json()).unwrap_or(Value::Null),
        parameters,
        state_bytes: parameters * (16 + compute),
        checkpoint_bytes: parameters * (8 + published + master),
        snapshot_bytes: parameters * 12,
        activation_bytes_estimate: activation_bytes(recipe, &config),
        flops_per_token,
        phases: phases.collect(),
        steps: plan.steps(),
        tokens,
        flops: flops_per_token * tokens as f64,
    })
}

/// f32 values per token that the tape keeps, times the tokens of a micro-batch: per Mamba layer the
/// normed input, both halves of in_proj, the convolved signal, dt, its projections, the scan's output
/// and saved states, and the sum; per use of the shared block what its operations read; what the block has of the
/// embedding, once, with its gradient; and the logits with theirs. With recomputation only each layer's input, and
/// one layer's inside.
fn activation_bytes(recipe: &Recipe, c: &ZambaConfig) -> u64 {
    let (d, e, f) = (c.hidden_size, c.d_inner(), c.intermediate_size);
    let states = c.mamba_d_state * e / zamba_kernels::SCAN_CHUNK;
    let mamba = 3 * d + 5 * e + c.n_mamba_heads * c.x_proj_rows() + states;
    let shared = 5 * d + 2 * c.q_width() + 2 * c.kv_width() + 3 * f;
    let beside = d + 2 * (c.q_width() + 2 * c.kv_width());
    let sites = c.hybrid_layers().len();
    let layers = if recipe.recompute {
        c.num_hidden_layers * d + mamba + shared
    } else {
        c.num_hidden_layers * mamba + sites * shared
    };
    let beside = if sites > 0 { beside } else { 0 };
    let per_token = layers + beside + 2 * d + 2 * c.vocab_size;
    (4 * per_token * recipe.micro_batch * recipe.sequence) as u64
}
