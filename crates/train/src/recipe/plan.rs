//! A recipe's phases laid out over the steps of the run.

use super::{Recipe, RecipeError, SourceSpec};
use crate::ckpt::sha256_hex;
use crate::schedule::{From, Schedule};
use serde_json::{Value, json};
use zamba::config::ZambaConfig;

/// One phase with its place in the run.
#[derive(Clone, Debug, PartialEq)]
pub struct PhasePlan {
    /// Name.
    pub name: String,
    /// Step of the run at which it begins.
    pub start: u64,
    /// Learning rate over its steps.
    pub schedule: Schedule,
}

/// All phases with their places.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order, without gaps.
    pub phases: Vec<PhasePlan>,
}

impl Plan {
    /// Lays the phases of a recipe out.
    ///
    /// # Errors
    /// If a warm-up or decay is longer than its phase.
    pub fn new(recipe: &Recipe) -> Result<Plan, RecipeError> {
        let mut phases: Vec<PhasePlan> = Vec::new();
        let (mut start, mut ended_at) = (0, 0.0);
        for phase in &recipe.phase {
            let steps = match (phase.steps, phase.tokens) {
                (Some(steps), _) => steps,
                (None, tokens) => tokens.unwrap_or(0).div_ceil(recipe.tokens_per_step()),
            };
            let from = match phase.warmup_from {
                From::Zero => 0.0,
                From::Previous => ended_at,
            };
            let key = |field: &str| format!("phase.{}.{field}", phase.name);
            if phase.warmup > steps {
                return Err(super::value(
                    key("warmup"),
                    format!("is longer than the phase of {steps} steps"),
                ));
            }
            if let crate::schedule::Shape::Wsd { decay, .. } = phase.schedule
                && decay > steps - phase.warmup
            {
                return Err(super::value(key("schedule.decay"), "is longer than what follows the warm-up"));
            }
            let schedule =
                Schedule { steps, peak: phase.peak, warmup: phase.warmup, from, shape: phase.schedule };
            ended_at = schedule.at(steps);
            phases.push(PhasePlan { name: phase.name.clone(), start, schedule });
            start += steps;
        }
        Ok(Plan { phases })
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.phases.last().map_or(0, |p| p.start + p.schedule.steps)
    }

    /// Phase of step `step` of the run, counted from 0, and the number of the step in it. Steps past the
    /// end belong to the last phase.
    pub fn place(&self, step: u64) -> (usize, u64) {
        let i = self.phases.iter().rposition(|p| p.start <= step).unwrap_or(0);
        (i, step - self.phases[i].start)
    }

    /// Learning rate of step `step`, counted from 0.
    pub fn lr(&self, step: u64) -> f64 {
        let (phase, step) = self.place(step);
        self.phases[phase].schedule.at(step)
    }

    /// Whether a phase ends after `done` steps.
    pub fn ends_phase(&self, done: u64) -> bool {
        self.phases.iter().any(|p| p.start + p.schedule.steps == done)
    }
}

/// What the weights depend on in a recipe up to and including phase `phase`: not the paths (the data is
/// identified by its content), nor how often something is saved, nor how rows are cut into passes, which
/// changes results by rounding only.
pub fn trajectory(recipe: &Recipe, config: &ZambaConfig, plan: &Plan, phase: usize) -> Value {
    let phases: Vec<Value> = recipe.phase[..=phase]
        .iter()
        .zip(&plan.phases)
        .map(|(p, plan)| {
            let source = |s: &SourceSpec| match s.max_epochs {
                None => json!([s.name, s.weight]),
                Some(most) => json!([s.name, s.weight, most]),
            };
            let sources: Vec<Value> = p.sources.iter().map(source).collect();
            json!({
                "name": p.name, "steps": plan.schedule.steps, "peak": p.peak, "warmup": p.warmup,
                "warmup_from": p.warmup_from, "schedule": p.schedule, "sources": sources, "replay": p.replay,
            })
        })
        .collect();
    // The configuration is plain JSON that this program wrote.
    let model: Value = serde_json::from_str(&config.to_json()).unwrap_or(Value::Null);
    json!({
        "seed": recipe.seed, "model": model, "compute": recipe.compute, "sequence": recipe.sequence,
        "global_batch": recipe.global_batch, "optimiser": recipe.optimiser, "guard": recipe.guard,
        "phases": phases,
    })
}

/// Hash of a [`trajectory`].
pub fn trajectory_sha256(trajectory: &Value) -> String {
    sha256_hex(trajectory.to_string().as_bytes())
}

/// The dotted keys at which two trajectories differ.
pub fn differences(a: &Value, b: &Value) -> Vec<String> {
    let mut keys = Vec::new();
    walk(a, b, String::new(), &mut keys);
    keys
}

fn walk(a: &Value, b: &Value, key: String, keys: &mut Vec<String>) {
    let under = |part: String| if key.is_empty() { part } else { format!("{key}.{part}") };
    match (a, b) {
        _ if a == b => {}
        (Value::Object(x), Value::Object(y)) => {
            for name in x.keys().chain(y.keys().filter(|k| !x.contains_key(*k))) {
                let (a, b) = (x.get(name).unwrap_or(&Value::Null), y.get(name).unwrap_or(&Value::Null));
                walk(a, b, under(name.clone()), keys);
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            for (i, (a, b)) in x.iter().zip(y).enumerate() {
                walk(a, b, under(i.to_string()), keys);
            }
        }
        _ => keys.push(key),
    }
}
