//! Prompts and generation: `pp512`, `tg32`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use serde::Serialize;
use zamba::session::PREFILL_CHUNK;
use zamba::{Batch, Session, State, Workspace, Zamba};
use zamba_kernels::Dtype;
use zamba_kernels::cpu::Cpu;

use super::limits::{Limits, Machine};
use super::profile::{Profile, Watch};
use super::{PerToken, Plan, Row, Tokens, print, repeat, seconds};
use crate::cost::Cost;
use crate::progress::{Progress, Unit};
use crate::{common, interrupt, out, system};

/// What `zamba bench -m` found.
#[derive(Debug, Serialize)]
struct Document {
    machine: Machine,
    model: String,
    parameters: u64,
    /// Weights as held in memory.
    bytes_of_weights: u64,
    /// Of one sequence, whatever its length.
    bytes_of_state: u64,
    bytes_of_kv_per_token: u64,
    /// Most memory that the process had at once from loading to the end of the tests.
    peak_bytes: Option<u64>,
    first_token: Option<FirstToken>,
    rows: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profiles: Vec<Profile>,
}

/// From the start of loading to the first generated token, beside reading the same files and doing nothing.
#[derive(Debug, Serialize)]
struct FirstToken {
    seconds: f64,
    load_seconds: f64,
    read_seconds: f64,
    ratio: f64,
}

/// One test: `tokens` for each of `batch` sequences that have `depth` already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Test {
    prompt: bool,
    tokens: usize,
    depth: usize,
    batch: usize,
}

impl Test {
    fn name(&self) -> String {
        let kind = if self.prompt { "pp" } else { "tg" };
        let depth = if self.depth > 0 { format!(" @ d{}", self.depth) } else { String::new() };
        let batch = if self.batch > 1 { format!(" b{}", self.batch) } else { String::new() };
        format!("{kind}{}{depth}{batch}", self.tokens)
    }

    /// What it reads and computes per token.
    fn per_token(&self, cost: &Cost) -> PerToken {
        let (n, depth, batch) = (self.tokens as f64, self.depth as f64, self.batch as f64);
        // Tokens that a generated one sees on average, and that a chunk of a prompt reads once.
        let (together, context, flops) = if self.prompt {
            let together = (PREFILL_CHUNK as f64).min(n * batch);
            let flops = cost.flops_of_prompt(self.tokens as u64, self.depth as u64) as f64 / n;
            (together, (depth + n / 2.0) / together.min(n), flops)
        } else {
            let seen = depth + (n + 1.0) / 2.0;
            let flops = (cost.linear_flops + cost.scan_flops) as f64;
            (batch, seen, flops + cost.attention_flops_per_context as f64 * seen)
        };
        let states = if self.prompt { 1.0 / together.min(n) } else { 1.0 };
        let bytes = cost.read_per_token as f64 / together
            + cost.state as f64 * states
            + cost.kv_per_token as f64 * context;
        PerToken { bytes, flops }
    }
}

impl Plan {
    fn tests(&self) -> Vec<Test> {
        let mut tests = vec![];
        for (&depth, &batch) in self.depths.iter().flat_map(|d| self.batches.iter().map(move |b| (d, b))) {
            for (prompt, list) in [(true, &self.prompts), (false, &self.generated)] {
                let some = list.iter().filter(|n| **n > 0);
                tests.extend(some.map(|&tokens| Test { prompt, tokens, depth, batch }));
            }
        }
        tests
    }
}

pub(crate) fn run(cpu: Arc<Cpu>, folder: &Path, plan: &Plan, json: bool) -> anyhow::Result<()> {
    let tests = plan.tests();
    if tests.is_empty() && !plan.first_token {
        bail!("there is nothing to measure; give --pp, --tg or --first-token");
    }
    let mut limits = Limits::new(cpu.clone());
    limits.measure();
    let watch = Watch::new(cpu, plan.profile);
    let read_seconds = if plan.first_token { Some(read_files(folder)?) } else { None };
    system::forget_peak();
    let start = Instant::now();
    let checkpoint = common::open(folder, plan.load)?;
    let model = common::load_on(&checkpoint, watch.device(), plan.load)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let first_token = read_seconds.map(|read_seconds| {
        Session::new(&model, 2).feed(&[1]);
        let seconds = start.elapsed().as_secs_f64();
        FirstToken { seconds, load_seconds, read_seconds, ratio: seconds / read_seconds }
    });
    drop(checkpoint);

    let probe = State::new(&model, 1, 1);
    let cost = Cost::of_model(&model, probe.kv_bytes_per_token() as u64);
    drop(probe);
    let mut progress = Progress::new("measuring", tests.len() as u64, Unit::Items("tests"));
    let (mut rows, mut taken) = (vec![], vec![]);
    for test in &tests {
        progress.say(&test.name());
        let times = measure(&model, &cost, *test, plan, &watch)?;
        let speeds: Vec<_> = times.iter().map(|time| (test.tokens * test.batch) as f64 / time).collect();
        rows.push(Row::new(test.name(), &speeds, test.per_token(&cost)));
        taken.extend(watch.take(test.name(), times.iter().sum()));
        progress.add(1);
    }
    drop(progress);
    let peak_bytes = system::peak_memory();
    limits.measure();
    let dtype = matrix_type(&model);
    let (read, arithmetic) = (limits.read(), limits.arithmetic(dtype));
    // What a quantised model leaves as it was.
    let floats = limits.arithmetic(if dtype.is_quantised() { Dtype::Bf16 } else { dtype });
    rows.iter_mut().for_each(|row| row.beside(read, arithmetic));
    let document = Document {
        machine: limits.machine(),
        model: folder.display().to_string(),
        parameters: model.num_parameters() as u64,
        bytes_of_weights: cost.weights,
        bytes_of_state: cost.state,
        bytes_of_kv_per_token: cost.kv_per_token,
        peak_bytes,
        first_token,
        rows,
        profiles: taken.into_iter().map(|taken| taken.beside(read, floats, arithmetic)).collect(),
    };
    if json { out::json(&document) } else { document.print() }
}

/// How the matrices are held; the embedding, which stands first, may differ from them.
fn matrix_type(model: &Zamba) -> Dtype {
    let inner = model.specs().iter().zip(model.params()).skip(1).find(|(spec, _)| !spec.keeps_f32());
    inner.map_or(Dtype::F32, |(_, param)| param.mat().dtype())
}

/// Seconds of each repetition, which a watch looks at.
fn measure(model: &Zamba, cost: &Cost, test: Test, plan: &Plan, watch: &Watch) -> anyhow::Result<Vec<f64>> {
    let context = test.depth + test.tokens;
    // Sequences with a past are kept a second time, to begin anew from.
    let slots = if test.depth > 0 { 2 * test.batch } else { test.batch };
    let bytes = cost.sequence(context as u64).and_then(|bytes| bytes.checked_mul(slots as u64));
    common::check_bytes(bytes, &format!("the state of {} does not fit; use fewer tokens", test.name()))?;
    let mut tokens = Tokens::new(plan.seed, model.config.vocab_size);
    let workspace = Workspace::new(model.device().clone());
    let mut state = State::new(model, slots, context);
    if test.depth > 0 {
        prompt(model, &workspace, &mut state, test.batch..slots, &mut tokens, test.depth)?;
    }
    repeat(plan.repetitions, |counts| {
        for slot in 0..test.batch {
            match test.depth {
                0 => state.reset(slot),
                _ => state.copy_slot(slot, test.batch + slot),
            }
        }
        let start = Instant::now();
        watch.over(counts, || {
            if test.prompt {
                prompt(model, &workspace, &mut state, 0..test.batch, &mut tokens, test.tokens)
            } else {
                generate(model, &workspace, &mut state, test.batch, &mut tokens, test.tokens)
            }
        })?;
        Ok(start.elapsed().as_secs_f64())
    })
}

/// Gives each sequence of `slots` `n` more tokens, packed in chunks as a session takes prompts. Logits are made
/// of the last token of a sequence alone.
fn prompt(
    model: &Zamba,
    workspace: &Workspace,
    state: &mut State,
    slots: std::ops::Range<usize>,
    tokens: &mut Tokens,
    n: usize,
) -> anyhow::Result<()> {
    let mut batch = Batch::default();
    let mut last = vec![];
    for slot in slots.clone() {
        let begin = state.len(slot);
        let mut done = 0;
        while done < n {
            let part = (n - done).min(PREFILL_CHUNK - batch.len());
            batch.push(slot, begin + done, &tokens.take(part));
            done += part;
            if done == n {
                last.push(batch.len() as u32 - 1);
            }
            if batch.len() == PREFILL_CHUNK || (done == n && slot + 1 == slots.end) {
                pass(model, workspace, state, std::mem::take(&mut batch), &std::mem::take(&mut last))?;
            }
        }
    }
    Ok(())
}

/// Generates `n` tokens for each of the first `sequences`, one of each at a time.
fn generate(
    model: &Zamba,
    workspace: &Workspace,
    state: &mut State,
    sequences: usize,
    tokens: &mut Tokens,
    n: usize,
) -> anyhow::Result<()> {
    for _ in 0..n {
        let mut batch = Batch::default();
        for slot in 0..sequences {
            batch.push(slot, state.len(slot), &tokens.take(1));
        }
        let last = batch.last_rows();
        pass(model, workspace, state, batch, &last)?;
    }
    Ok(())
}

/// One forward pass, with the logits of rows `last`.
fn pass(
    model: &Zamba,
    workspace: &Workspace,
    state: &mut State,
    batch: Batch,
    last: &[u32],
) -> anyhow::Result<()> {
    interrupt::check("nothing was measured")?;
    let mut ctx = workspace.infer(batch, Some(state));
    let hidden = model.forward(&mut ctx);
    if !last.is_empty() {
        let hidden = ctx.select(&hidden, last);
        let logits = model.logits(&mut ctx, &hidden);
        let mut first = [0.0];
        ctx.read(&logits, 0, &mut first);
    }
    Ok(())
}

/// Seconds to read all weight files of a folder once, and nothing else.
fn read_files(folder: &Path) -> anyhow::Result<f64> {
    use std::io::Read;
    let mut buffer = vec![0; 1 << 20];
    let mut result = Ok(());
    let mut read = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let mut file = std::fs::File::open(path)?;
                while file.read(&mut buffer)? > 0 {}
            }
        }
        Ok(())
    };
    let time = seconds(|| result = read());
    result?;
    Ok(time)
}

impl Document {
    fn print(&self) -> anyhow::Result<()> {
        out::line(&self.machine.line())?;
        let (parameters, weights) = (out::count(self.parameters), out::bytes(self.bytes_of_weights));
        let peak = self.peak_bytes.map(|peak| format!(", peak memory {}", out::bytes(peak)));
        out::line(&format!(
            "{}: {parameters} parameters, weights {weights}, state {}{}",
            self.model,
            out::bytes(self.bytes_of_state),
            peak.unwrap_or_default()
        ))?;
        if let Some(first) = &self.first_token {
            let FirstToken { seconds, load_seconds, read_seconds, ratio } = first;
            out::line(&format!(
                "first token after {seconds:.2} s ({load_seconds:.2} s of loading), {ratio:.2} times the \
                 {read_seconds:.2} s of reading the files"
            ))?;
        }
        if !self.rows.is_empty() {
            print(&self.rows)?;
        }
        self.profiles.iter().try_for_each(Profile::print)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zamba::ZambaConfig;
    use zamba::config::FileDtype;

    use crate::common::LoadArgs;

    #[test]
    fn tests_are_named_as_llama_bench_names_them() {
        let plan = Plan {
            prompts: vec![512, 0],
            generated: vec![32],
            depths: vec![0, 1024],
            batches: vec![1, 8],
            repetitions: 1,
            first_token: false,
            profile: false,
            seed: 0,
            load: LoadArgs::COPY,
        };
        let names: Vec<_> = plan.tests().iter().map(Test::name).collect();
        let expected = [
            "pp512",
            "tg32",
            "pp512 b8",
            "tg32 b8",
            "pp512 @ d1024",
            "tg32 @ d1024",
            "pp512 @ d1024 b8",
            "tg32 @ d1024 b8",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn sequences_share_the_weights_and_prompts_the_head() {
        let config = ZambaConfig::preset("zamba-7b").unwrap();
        let cost = Cost::of(&config, FileDtype::Bf16);
        let each = |prompt, tokens, batch| Test { prompt, tokens, depth: 0, batch }.per_token(&cost);
        let (one, eight) = (each(false, 1, 1), each(false, 1, 8));
        let own = cost.state as f64 + cost.kv_per_token as f64;
        assert_eq!(one.bytes, cost.read_per_token as f64 + own);
        assert_eq!(eight.bytes, cost.read_per_token as f64 / 8.0 + own);
        assert_eq!(one.flops, eight.flops);
        assert_eq!(one.flops, each(true, 1, 1).flops, "a prompt of one token has one row of logits");
        let many = each(true, 512, 1);
        assert!(many.flops < one.flops && many.bytes < one.bytes / 400.0, "{many:?}");
    }
}
