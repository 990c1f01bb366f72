//! Training steps on random tokens.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;
use zamba::checkpoint::FileDtype;
use zamba::{Batch, Workspace, ZambaConfig};
use zamba_data::fs::RealFs;
use zamba_kernels::Dtype;
use zamba_kernels::cpu::Cpu;
use zamba_train::recipe::{Compute, Optimiser};
use zamba_train::state::RunState;
use zamba_train::{Recipe, mfu, step};

use super::limits::{Limits, Machine};
use super::profile::{Profile, Watch};
use super::{Tokens, repeat, table};
use crate::common::DtypeName;
use crate::error::Stop;
use crate::{common, interrupt, out, system};

/// What to train, how much of it, and how often; what is not given, the recipe or a default decides.
#[derive(Debug, Clone)]
pub(crate) struct Wishes {
    pub(crate) tokens: Option<usize>,
    pub(crate) rows: Option<usize>,
    pub(crate) dtype: Option<DtypeName>,
    pub(crate) repetitions: u32,
    pub(crate) profile: bool,
    pub(crate) seed: u64,
}

/// One optimiser step.
struct Step {
    name: String,
    config: ZambaConfig,
    optimiser: Optimiser,
    format: Dtype,
    recompute: bool,
    sequence: usize,
    /// Rows per pass, and passes.
    rows: usize,
    passes: usize,
}

/// What `zamba bench --train` found.
#[derive(Debug, Serialize)]
struct Document {
    machine: Machine,
    parameters: u64,
    dtype: &'static str,
    peak_bytes: Option<u64>,
    rows: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profiles: Vec<Profile>,
}

/// A training step and its speed beside the arithmetic limit.
#[derive(Debug, Serialize)]
struct Row {
    test: String,
    tokens_per_second: f64,
    stddev: f64,
    best_tokens_per_second: f64,
    /// Of the model as it is defined, forward and backward; nothing that is computed twice counts.
    flops_per_token: f64,
    gemm_tflops: f64,
    fraction_of_gemm: f64,
    seconds: Seconds,
}

/// Means per step.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Seconds {
    forward: f64,
    backward: f64,
    /// Norm of the gradients, AdamW, and the weights rounded to what computes.
    optimiser: f64,
}

impl Seconds {
    fn sum(&self) -> f64 {
        self.forward + self.backward + self.optimiser
    }
}

pub(crate) fn run(cpu: Arc<Cpu>, what: &Path, wishes: &Wishes, json: bool) -> anyhow::Result<()> {
    let step = Step::new(what, wishes)?;
    // Master weights, two moments and gradients in f32, and the copy that computes.
    let bytes = step.config.parameters().checked_mul(16 + step.format.size() as u64);
    common::check_bytes(bytes, &format!("the state of training {} does not fit", step.name))?;
    let mut limits = Limits::new(cpu.clone());
    limits.measure();
    system::forget_peak();
    let watch = Watch::new(cpu, wishes.profile);
    let times = step.measure(wishes, &watch)?;
    let peak_bytes = system::peak_memory();
    limits.measure();
    let arithmetic = limits.arithmetic(step.format);
    let row = step.row(&times, arithmetic);
    let taken = watch.take(row.test.clone(), times.iter().map(Seconds::sum).sum());
    let document = Document {
        machine: limits.machine(),
        parameters: step.config.parameters(),
        dtype: if step.format == Dtype::Bf16 { "bfloat16" } else { "float32" },
        peak_bytes,
        rows: vec![row],
        profiles: taken
            .into_iter()
            .map(|taken| taken.beside(limits.read(), arithmetic, arithmetic))
            .collect(),
    };
    if json { out::json(&document) } else { document.print() }
}

impl Step {
    fn new(what: &Path, wishes: &Wishes) -> anyhow::Result<Step> {
        let named = what.display().to_string();
        let wished = match wishes.dtype {
            None => None,
            Some(DtypeName::F32) => Some(Dtype::F32),
            Some(DtypeName::Bf16) => Some(Dtype::Bf16),
            Some(DtypeName::F16) => {
                return Err(Stop::Usage("--dtype f16: training computes in f32 or bf16".into()).into());
            }
        };
        if ZambaConfig::preset_names().contains(&named.as_str()) {
            return Ok(Step {
                config: ZambaConfig::preset(&named)?,
                name: named,
                optimiser: Optimiser::default(),
                format: wished.unwrap_or(Dtype::Bf16),
                recompute: false,
                sequence: wishes.tokens.unwrap_or(1024),
                rows: wishes.rows.unwrap_or(1),
                passes: 1,
            });
        }
        if !what.exists() {
            let known = ZambaConfig::preset_names().join(", ");
            let words =
                format!("--train {named} is neither a recipe nor a known name; the names are {known}");
            return Err(Stop::Usage(words).into());
        }
        let recipe = Recipe::load(&RealFs, what, &[])?;
        let computes = if recipe.compute == Compute::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
        Ok(Step {
            config: recipe.model_config(&RealFs).with_context(|| named.clone())?,
            name: what.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            format: wished.unwrap_or(computes),
            recompute: recipe.recompute,
            sequence: wishes.tokens.unwrap_or(recipe.sequence),
            rows: wishes.rows.unwrap_or(recipe.micro_batch),
            passes: if wishes.rows.is_some() { 1 } else { recipe.accumulation() },
            optimiser: recipe.optimiser,
        })
    }

    /// Seconds of each repetition, which a watch looks at.
    fn measure(&self, wishes: &Wishes, watch: &Watch) -> anyhow::Result<Vec<Seconds>> {
        let device = watch.device();
        let config = ZambaConfig { dtype: FileDtype::F32, ..self.config.clone() };
        let mut state = RunState::new(&config, &*device, wishes.seed);
        let mut model = step::model(&config, &device, self.format, &state);
        let mut grads = device.alloc(Dtype::F32, state.weights.len());
        let workspace = Workspace::new(device.clone());
        let mut tokens = Tokens::new(wishes.seed, config.vocab_size);
        let scale = 1.0 / (self.passes * self.rows * self.sequence) as f32;
        let mut all = vec![];
        repeat(wishes.repetitions, |counts| {
            watch.over(counts, || {
                let mut spent = Seconds::default();
                let mut clock = Clock(Instant::now());
                for _ in 0..self.passes {
                    interrupt::check("nothing was measured")?;
                    let mut batch = Batch::default();
                    (0..self.rows).for_each(|row| batch.push(row, 0, &tokens.take(self.sequence)));
                    let targets = tokens.take(self.rows * self.sequence);
                    let mut ctx = workspace.train(batch, self.recompute);
                    let hidden = model.forward(&mut ctx);
                    spent.forward += clock.lap();
                    // The loss and its gradient come with the way back.
                    model.backward(ctx, hidden, &targets, scale, &mut grads);
                    spent.backward += clock.lap();
                }
                let norm = step::norm(&*device, &grads);
                step::update(&mut model, &mut state, &*device, &mut grads, &self.optimiser, 1e-4, norm);
                spent.optimiser = clock.lap();
                all.extend(counts.then_some(spent));
                Ok(spent.sum())
            })
        })?;
        Ok(all)
    }

    fn row(&self, times: &[Seconds], flops: f64) -> Row {
        let tokens = (self.passes * self.rows * self.sequence) as f64;
        let speeds: Vec<f64> = times.iter().map(|time| tokens / time.sum()).collect();
        let (tokens_per_second, stddev) = super::mean_and_deviation(&speeds);
        let mean = |part: fn(&Seconds) -> f64| times.iter().map(part).sum::<f64>() / times.len() as f64;
        let flops_per_token = mfu::train_flops(&self.config, self.sequence);
        let rows = self.passes * self.rows;
        let batch = if rows > 1 { format!(" b{rows}") } else { String::new() };
        Row {
            test: format!("train {} t{}{batch}", self.name, self.sequence),
            tokens_per_second,
            stddev,
            best_tokens_per_second: speeds.iter().copied().fold(0.0, f64::max),
            flops_per_token,
            gemm_tflops: flops / 1e12,
            fraction_of_gemm: flops_per_token * tokens_per_second / flops,
            seconds: Seconds {
                forward: mean(|s| s.forward),
                backward: mean(|s| s.backward),
                optimiser: mean(|s| s.optimiser),
            },
        }
    }
}

/// Takes the time between two looks.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now)).as_secs_f64()
    }
}

impl Document {
    fn print(&self) -> anyhow::Result<()> {
        out::line(&self.machine.line())?;
        let peak = self.peak_bytes.map(|peak| format!(", peak memory {}", out::bytes(peak)));
        let (parameters, dtype) = (out::count(self.parameters), self.dtype);
        out::line(&format!("{parameters} parameters in {dtype}{}", peak.unwrap_or_default()))?;
        let cells = |row: &Row| {
            [
                row.test.clone(),
                format!("{:.1} ± {:.1}", row.tokens_per_second, row.stddev),
                format!("{:.3}", row.flops_per_token / 1e9),
                format!("{:.1} %", 100.0 * row.fraction_of_gemm),
                format!("{:.3}", row.seconds.forward),
                format!("{:.3}", row.seconds.backward),
                format!("{:.3}", row.seconds.optimiser),
            ]
        };
        let heads = ["test", "t/s", "GFLOP/token", "of arithmetic", "forward s", "backward s", "optimiser s"];
        table(&heads, &self.rows.iter().map(cells).collect::<Vec<_>>())?;
        self.profiles.iter().try_for_each(Profile::print)
    }
}
