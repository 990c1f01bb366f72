//! Whole runs of a tiny model on a disk in memory.

mod common;

use common::{Stop, World, recipe};
use std::path::Path;
use std::sync::atomic::Ordering;
use zamba_data::fs::{Fault, FaultKind, Fs};
use zamba_train::log::{EvalRecord, StepRecord};
use zamba_train::{TrainError, ckpt};

#[test]
fn ten_steps_resumed_are_twenty_steps_bit_for_bit() {
    let whole = World::new();
    let recipe = recipe(&[]);
    whole.train(&recipe, false, Stop::Never).unwrap();
    let want = whole.weights(20);
    assert_ne!(whole.weights(12), want, "the run does not move");

    // A step asks four times whether to stop, so this stops before, amid and after the passes of steps,
    // in an evaluation, and around the phase change after step 12. Partial gradients are dropped and the
    // step is done again.
    for stop in (1..20).map(Stop::AfterStep).chain([2, 3, 4, 35, 42, 49, 50, 51, 52].map(Stop::AfterAsking)) {
        let cut = World::new();
        let summary = cut.train(&recipe, false, stop).unwrap();
        assert!(summary.step < 20, "{stop:?} did not stop");
        cut.train(&recipe, true, Stop::Never).unwrap();
        assert_eq!(cut.state_files(20), whole.state_files(20), "{stop:?}");
        let steps: Vec<u64> = cut.log().iter().map(|r: &StepRecord| r.step).collect();
        assert_eq!(steps, (1..=20).collect::<Vec<_>>(), "{stop:?}");
        let losses = |w: &World| w.log().iter().map(|r: &StepRecord| r.loss.to_bits()).collect::<Vec<_>>();
        assert_eq!(losses(&cut), losses(&whole), "{stop:?}");
    }
}

#[test]
fn bf16_and_recomputation_resume_bit_for_bit_too() {
    for sets in [&["compute=bf16"][..], &["compute=bf16", "publish=f32"], &["recompute=true"]] {
        let recipe = recipe(sets);
        let whole = World::new();
        whole.train(&recipe, false, Stop::Never).unwrap();
        let cut = World::new();
        cut.train(&recipe, false, Stop::AfterStep(13)).unwrap();
        cut.train(&recipe, true, Stop::Never).unwrap();
        assert_eq!(cut.state_files(20), whole.state_files(20), "{sets:?}");
    }
}

#[test]
fn the_memory_of_the_guards_is_part_of_the_state() {
    let recipe =
        recipe(&["guard.spike_window=3", "guard.spike_sigmas=1.2", "guard.max_consecutive_skips=20"]);
    let whole = World::new();
    let skipped = whole.train(&recipe, false, Stop::Never).unwrap().skipped;
    assert!((1..15).contains(&skipped), "{skipped} steps are skipped");
    for step in 1..20 {
        let cut = World::new();
        cut.train(&recipe, false, Stop::AfterStep(step)).unwrap();
        cut.train(&recipe, true, Stop::Never).unwrap();
        assert_eq!(cut.state_files(20), whole.state_files(20), "stopped after step {step}");
    }
}

#[test]
fn recomputation_changes_no_bit() {
    let (a, b) = (World::new(), World::new());
    a.train(&recipe(&[]), false, Stop::Never).unwrap();
    b.train(&recipe(&["recompute=true"]), false, Stop::Never).unwrap();
    assert_eq!(a.weights(20), b.weights(20));
}

#[test]
fn it_learns_and_leaves_what_it_promises() {
    let world = World::new();
    let summary = world.train(&recipe(&["peak_tflops=0.5"]), false, Stop::Never).unwrap();
    assert_eq!((summary.step, summary.steps, summary.tokens, summary.skipped), (20, 20, 20 * 4 * 32, 0));
    let log: Vec<StepRecord> = world.log();
    let mean = |part: &[StepRecord]| part.iter().map(|r| r.loss).sum::<f64>() / part.len() as f64;
    assert!(mean(&log[8..12]) < mean(&log[..3]) - 0.1, "{} {}", mean(&log[8..12]), mean(&log[..3]));
    assert!(
        (log[0].loss - 64f64.ln()).abs() < 0.3,
        "the first loss is that of a uniform guess: {}",
        log[0].loss
    );
    assert!(log.iter().all(|r| r.mfu.is_some_and(|m| m > 0.0) && r.grad_norm > 0.0));
    assert_eq!(log[11].phase, "pretrain");
    assert_eq!(log[12].phase, "anneal");

    let evals: Vec<EvalRecord> = world.lines("eval.jsonl");
    let at: Vec<u64> = evals.iter().map(|e| e.step).collect();
    assert_eq!(at, [8, 12, 16, 20]);
    assert!(evals[3].bits_per_byte < evals[0].bits_per_byte);
    assert_eq!(summary.evals, evals[3..]);

    // Ends of phases stay beside the newest two, and each is a model folder.
    assert_eq!(world.steps(), [12, 18, 20]);
    for step in [12, 20] {
        let dir = ckpt::step_dir(Path::new("/out"), step);
        assert!(ckpt::verify(&world.fs, &dir).unwrap().head.milestone);
        let files = [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "MANIFEST.json",
            "state/recipe.toml",
        ];
        assert!(files.iter().all(|f| world.fs.exists(&dir.join(f)).unwrap()));
    }
    let svg = String::from_utf8(world.fs.read(Path::new("/out/loss.svg")).unwrap()).unwrap();
    assert!(svg.contains("pretrain") && svg.contains("anneal"));
    assert_eq!(world.fs.list(Path::new("/out/tensorboard")).unwrap().len(), 1);
    let mixture: serde_json::Value =
        serde_json::from_slice(&world.fs.read(Path::new("/out/mixture-1.json")).unwrap()).unwrap();
    let rows: u64 = mixture.as_array().unwrap().iter().map(|r| r["samples"].as_u64().unwrap()).sum();
    assert_eq!(rows, 8 * 4);
    let replayed = mixture.as_array().unwrap().iter().find(|r| r["name"] == "web").unwrap();
    assert_eq!(replayed["samples"], 19, "60 % of 32 rows");
}

#[test]
fn the_last_published_weights_are_the_master_weights_rounded() {
    let world = World::new();
    world.train(&recipe(&["compute=bf16"]), false, Stop::Never).unwrap();
    let dir = ckpt::step_dir(Path::new("/out"), 20);
    let master = world.fs.read(&dir.join("state/weights.safetensors")).unwrap();
    let published = world.fs.read(&dir.join("model.safetensors")).unwrap();
    assert!(published.len() < master.len() * 6 / 10);
    let config: serde_json::Value =
        serde_json::from_slice(&world.fs.read(&dir.join("config.json")).unwrap()).unwrap();
    let dtype = config.get("torch_dtype").or_else(|| config.get("dtype")).unwrap();
    assert_eq!(dtype, "bfloat16");
}

/// `transformers` wants the shared block of an untied model under each hybrid layer.
#[test]
fn an_untied_model_is_published_with_its_copies_and_resumes() {
    let recipe = recipe(&[
        "model.tie_word_embeddings=false",
        "model.layers_block_type=['hybrid','mamba','hybrid','mamba']",
    ]);
    let (whole, cut) = (World::new(), World::new());
    whole.train(&recipe, false, Stop::Never).unwrap();
    cut.train(&recipe, false, Stop::AfterStep(13)).unwrap();
    cut.train(&recipe, true, Stop::Never).unwrap();
    assert_eq!(cut.state_files(20), whole.state_files(20));
    let file = whole.fs.read(&ckpt::step_dir(Path::new("/out"), 20).join("model.safetensors")).unwrap();
    let model = safetensors::SafeTensors::deserialize(&file).unwrap();
    let block = |layer: usize| {
        let name = format!("model.layers.{layer}.shared_transf.self_attn.q_proj.weight");
        model.tensor(&name).unwrap().data().to_vec()
    };
    assert_eq!(block(0), block(2));
}

#[test]
fn a_run_goes_on_only_as_itself() {
    let world = World::new();
    world.train(&recipe(&[]), false, Stop::AfterStep(13)).unwrap();
    let occupied = world.train(&recipe(&[]), false, Stop::Never).unwrap_err();
    assert!(matches!(occupied, TrainError::Occupied { step: 13, .. }), "{occupied}");
    let changed = world.train(&recipe(&["seed=2", "phase.anneal.peak=1e-4"]), true, Stop::Never).unwrap_err();
    let text = changed.to_string();
    assert!(text.contains("seed") && text.contains("phases.1.peak"), "{text}");
    // Another text under the same name and of the same length is not the same data.
    world.write_shards(99);
    let data = world.train(&recipe(&[]), true, Stop::Never).unwrap_err();
    assert!(matches!(data, TrainError::DataChanged { .. }), "{data}");
    world.write_shards(0);
    world.train(&recipe(&["checkpoint_every=2", "keep=4"]), true, Stop::Never).unwrap();
}

#[test]
fn a_later_phase_may_be_added_or_changed_after_an_earlier_one() {
    let world = World::new();
    world.train(&recipe(&[]), false, Stop::AfterStep(12)).unwrap();
    let summary = world.train(&recipe(&["phase.anneal.peak=1e-4"]), true, Stop::Never).unwrap();
    assert_eq!(summary.step, 20);
}

#[test]
fn a_damaged_checkpoint_costs_steps_and_not_the_run() {
    let whole = World::new();
    whole.train(&recipe(&[]), false, Stop::Never).unwrap();
    let world = World::new();
    world.train(&recipe(&[]), false, Stop::AfterStep(11)).unwrap();
    world.fs.flip(&ckpt::step_dir(Path::new("/out"), 11).join("state/optimiser.safetensors"), 4321).unwrap();
    world.train(&recipe(&[]), true, Stop::Never).unwrap();
    assert!(world.notes().iter().any(|n| n.contains("step 11 is unusable")), "{:?}", world.notes());
    assert_eq!(world.weights(20), whole.weights(20));
}

#[test]
fn a_flipped_bit_in_a_token_shard_is_found_before_the_first_step() {
    let world = World::new();
    for file in ["/data/web.bin", "/data/web.idx", "/data/docs.bin", "/data/held.bin"] {
        world.fs.flip(Path::new(file), 777).unwrap();
        let error = world.train(&recipe(&[]), false, Stop::Never).unwrap_err();
        assert!(matches!(error, TrainError::Data(_)), "{error}");
        world.fs.flip(Path::new(file), 777).unwrap();
    }
    assert!(!world.fs.exists(Path::new("/out/log.jsonl")).unwrap());
}

#[test]
fn a_disk_that_fails_for_a_while_changes_nothing_in_the_end() {
    let whole = World::new();
    whole.train(&recipe(&[]), false, Stop::Never).unwrap();
    for (kind, after) in [(FaultKind::Enospc, 8), (FaultKind::Eio, 8), (FaultKind::Fsync, 5)] {
        let world = World::new();
        // The observer breaks the disk after one step and mends it after the sixteenth.
        *world.on_step.lock().unwrap() = Some(Box::new(move |fs, step| {
            if step == after {
                fs.plan(Some(Fault { at: fs.ops(), kind, forever: true }));
            } else if step == 16 {
                fs.plan(None);
            }
        }));
        let summary = world.train(&recipe(&["eval.every=1000"]), false, Stop::Never);
        // Reading the data may fail too, which ends the run; then a resume must do.
        if kind == FaultKind::Eio && summary.is_err() {
            world.fs.plan(None);
            *world.on_step.lock().unwrap() = None;
            world.train(&recipe(&["eval.every=1000"]), true, Stop::Never).unwrap();
        } else {
            summary.unwrap();
        }
        assert!(world.notes().iter().any(|n| n.contains("not saved")), "{kind:?}: {:?}", world.notes());
        assert_eq!(world.weights(20), whole.weights(20), "{kind:?}");
    }
}

#[test]
fn steps_that_go_astray_are_skipped_and_then_stop_the_run() {
    let world = World::new();
    // A rate far beyond reason makes the next losses infinite or NaN; they must not reach the weights.
    let wild = recipe(&[
        "phase.pretrain.peak=1e30",
        "phase.pretrain.warmup=0",
        "optimiser.clip=0.0",
        "guard.max_consecutive_skips=3",
    ]);
    let error = world.train(&wild, false, Stop::Never).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { skips: 3, .. }), "{error}");
    let log: Vec<StepRecord> = world.log();
    assert!(log.iter().rev().take(3).all(|r| r.skipped.is_some()));
    assert!(world.notes().iter().any(|n| n.contains("update skipped")));
}

#[test]
fn without_a_checkpoint_resume_starts_at_the_beginning() {
    let world = World::new();
    let summary = world.train(&recipe(&[]), true, Stop::AfterStep(1)).unwrap();
    assert_eq!(summary.step, 1);
    assert!(world.notes().iter().any(|n| n.contains("starting at step 0")));
    let stopped = World::new();
    stopped.stop.store(true, Ordering::Relaxed);
    assert_eq!(stopped.train(&recipe(&[]), false, Stop::Never).unwrap().step, 0);
}
