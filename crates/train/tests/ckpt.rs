//! The checkpoint protocol on a disk that fails at every operation and forgets what was not synced.
//! The method is SQLite's: fail operation k for every k, once and for ever, and look at what is left.

use std::path::Path;
use std::sync::Arc;
use zamba_data::fs::{Fault, FaultFs, FaultKind, Fs};
use zamba_train::ckpt::{self, CkptError, FileJob, Head, Known, Manifest, Snapshot};
use zamba_train::saver::{Saver, save_and_prune};

const ROOT: &str = "/out";
const NAMES: [&str; 4] =
    ["config.json", "model.safetensors", "state/optimiser.safetensors", "state/run.json"];

fn contents(step: u64, name: &str) -> Vec<u8> {
    let len = if name.ends_with("safetensors") { 700 } else { 60 };
    let mut x = step.wrapping_mul(0x9e37_79b9).wrapping_add(name.len() as u64);
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as u8
        })
        .collect()
}

fn head(step: u64, milestone: bool) -> Head {
    Head {
        step,
        tokens: step * 1000,
        phase: "pretrain".into(),
        milestone,
        config_sha256: "c0".into(),
        data_cursor: step * 8,
        data_sha256: "d0".into(),
    }
}

fn snapshot(step: u64, milestone: bool) -> Snapshot {
    let files = NAMES.iter().map(|n| FileJob::bytes(*n, contents(step, n))).collect();
    Snapshot { head: head(step, milestone), files }
}

fn save(fs: &dyn Fs, step: u64) -> Result<Manifest, CkptError> {
    save_knowing(fs, step, &mut Known::default())
}

/// As a process that remembers its earlier saves.
fn save_knowing(fs: &dyn Fs, step: u64, known: &mut Known) -> Result<Manifest, CkptError> {
    save_and_prune(fs, Path::new(ROOT), 2, snapshot(step, false), known)
}

/// A disk with good checkpoints of steps 1 and 2.
fn disk() -> FaultFs {
    let fs = FaultFs::new();
    save(&fs, 1).unwrap();
    save(&fs, 2).unwrap();
    fs
}

/// Loads the newest checkpoint and checks every byte of it; its step.
fn load(fs: &dyn Fs) -> Option<u64> {
    let (dir, manifest) = ckpt::newest(fs, Path::new(ROOT), &mut |_| {}).ok()??;
    let step = manifest.head.step;
    assert_eq!(manifest.head, head(step, manifest.head.milestone));
    for name in NAMES {
        let bytes = ckpt::read_file(fs, &dir, &manifest, name).ok()?;
        assert_eq!(bytes, contents(step, name), "{name} of step {step} is silently wrong");
    }
    Some(step)
}

/// Whether `LATEST` names a checkpoint that verifies.
fn latest_is_whole(fs: &dyn Fs) -> bool {
    let name = String::from_utf8(fs.read(&Path::new(ROOT).join(ckpt::LATEST)).unwrap()).unwrap();
    ckpt::verify(fs, &Path::new(ROOT).join(name.trim_end())).is_ok()
}

fn verified(fs: &dyn Fs) -> usize {
    (1..=4).filter(|&s| ckpt::verify(fs, &ckpt::step_dir(Path::new(ROOT), s)).is_ok()).count()
}

fn all_faults() -> impl Iterator<Item = (FaultKind, bool)> {
    [FaultKind::Eio, FaultKind::Enospc, FaultKind::ShortWrite, FaultKind::Fsync]
        .into_iter()
        .flat_map(|kind| [(kind, false), (kind, true)])
}

#[test]
fn every_operation_of_a_save_may_fail_in_every_way() {
    let mut cases = 0;
    for (kind, forever) in all_faults() {
        for k in 0.. {
            let fs = disk();
            let before = fs.ops();
            fs.plan(Some(Fault { at: before + k, kind, forever }));
            let mut known = Known::default();
            let outcome = save_knowing(&fs, 3, &mut known);
            let over = fs.ops() <= before + k;
            fs.plan(None);

            let what = format!("{kind:?} at operation {k}, forever {forever}: {outcome:?}");
            let found = load(&fs).unwrap_or_else(|| panic!("nothing loads after {what}"));
            assert!(found >= 2, "{what}");
            assert!(outcome.is_err() || found == 3, "{what}");
            assert!(verified(&fs) >= 2, "fewer than two are left after {what}");
            for seed in 0..6 {
                let after = fs.crash(seed);
                let found = load(&after).unwrap_or_else(|| panic!("nothing loads after a crash, {what}"));
                assert!(found >= 2 && (outcome.is_err() || found == 3), "crash {seed} found {found}, {what}");
                assert!(latest_is_whole(&after), "LATEST is ahead after crash {seed}, {what}");
            }
            // The disk is well again: the run that stayed alive saves, and nothing is left lying about.
            save_knowing(&fs, 4, &mut known)
                .unwrap_or_else(|e| panic!("the next save fails too, {e}, after {what}"));
            assert_eq!(load(&fs), Some(4));
            for seed in 0..3 {
                assert!(verified(&fs.crash(seed)) >= 2, "only one would outlive a power cut after {what}");
            }
            let left = fs.list(Path::new(ROOT)).unwrap();
            assert!(!left.iter().any(|e| e.name.to_string_lossy().contains("tmp")), "{left:?} after {what}");
            cases += 1;
            if over {
                assert!(outcome.is_ok(), "{what}");
                break;
            }
        }
    }
    assert!(cases > 200, "{cases} cases: the save does not go through the door");
}

#[test]
fn every_operation_of_a_load_may_fail() {
    for (kind, forever) in all_faults() {
        for k in 0.. {
            let fs = disk();
            let before = fs.ops();
            fs.plan(Some(Fault { at: before + k, kind, forever }));
            // `load` compares every byte: an error or an older checkpoint is fine, wrong bytes are not.
            let found = load(&fs);
            let over = fs.ops() <= before + k;
            fs.plan(None);
            assert_eq!(load(&fs), Some(2), "a failed load changed the disk");
            if over {
                assert_eq!(found, Some(2));
                break;
            }
        }
    }
}

/// The process dies at operation k, the machine forgets; the next process resumes, saves, dies at
/// operation j, and the machine forgets again.
#[test]
fn crashes_in_a_save_and_in_the_recovery_after_it() {
    let mut states = 0;
    for k in 0.. {
        let fs = disk();
        let before = fs.ops();
        fs.plan(Some(Fault { at: before + k, kind: FaultKind::Kill, forever: true }));
        let done = save(&fs, 3).is_ok();
        for seed in 0..12 {
            let first = fs.crash(seed);
            assert!(load(&first).is_some_and(|s| s >= 2), "operation {k}, crash {seed}");
            assert!(latest_is_whole(&first), "LATEST is ahead: operation {k}, crash {seed}");
            let at = first.ops() + (seed * 7 + k) % 70;
            first.plan(Some(Fault { at, kind: FaultKind::Kill, forever: true }));
            let again = save(&first, 3).is_ok();
            let second = first.crash(seed + 100);
            let found = load(&second).unwrap_or_else(|| panic!("operation {k}, crashes {seed}"));
            assert!(found == 3 || (found == 2 && !again), "operation {k}, crashes {seed}: {found}");
            states += 2;
        }
        if done {
            break;
        }
    }
    assert!(states > 500, "{states}");
}

#[test]
fn a_disk_that_fills_up_leaves_the_old_checkpoints_whole() {
    let fs = disk();
    let one: u64 = NAMES.iter().map(|n| contents(1, n).len() as u64).sum();
    // Below the need nothing is begun; the margin stands for what cannot be known beforehand.
    fs.set_capacity(2 * one + 4096);
    assert!(matches!(save(&fs, 3), Err(CkptError::NoSpace { .. })));
    assert_eq!((load(&fs), verified(&fs)), (Some(2), 2));
    fs.set_capacity(1 << 30);
    save(&fs, 3).unwrap();
    assert_eq!(load(&fs), Some(3));
}

#[test]
fn every_flipped_bit_is_found() {
    let fs = disk();
    let dir = ckpt::step_dir(Path::new(ROOT), 2);
    let flip_is_found = |path: &Path, bit: usize| {
        fs.flip(path, bit).unwrap();
        assert!(ckpt::verify(&fs, &dir).is_err(), "bit {bit} of {} passes", path.display());
        let mut told = Vec::new();
        let (found, _) = ckpt::newest(&fs, Path::new(ROOT), &mut |m| told.push(m)).unwrap().unwrap();
        assert!(found.ends_with("step-1") && told.len() == 1 && told[0].contains("step 2"), "{told:?}");
        fs.flip(path, bit).unwrap();
    };
    let manifest = dir.join(ckpt::MANIFEST);
    for bit in 0..fs.read(&manifest).unwrap().len() * 8 {
        flip_is_found(&manifest, bit);
    }
    let mut all: Vec<(&str, usize)> = Vec::new();
    for name in NAMES {
        all.extend((0..contents(2, name).len() * 8).map(|bit| (name, bit)));
    }
    let mut x = 1u64;
    for _ in 0..2000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (name, bit) = all[(x >> 33) as usize % all.len()];
        flip_is_found(&dir.join(name), bit);
    }
    assert_eq!(load(&fs), Some(2));
}

#[test]
fn lengths_strays_and_moved_folders_are_found() {
    let fs = disk();
    let dir = ckpt::step_dir(Path::new(ROOT), 2);
    let path = dir.join(NAMES[0]);
    let bytes = fs.read(&path).unwrap();
    for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], b"x"].concat(), b""] {
        fs.write(&path, wrong).unwrap();
        assert!(matches!(ckpt::verify(&fs, &dir), Err(CkptError::Damaged { .. })));
    }
    fs.write(&path, &bytes).unwrap();
    ckpt::verify(&fs, &dir).unwrap();
    fs.remove_file(&path).unwrap();
    assert!(ckpt::verify(&fs, &dir).is_err());
    let manifest = fs.read(&dir.join(ckpt::MANIFEST)).unwrap();
    fs.write(&dir.join(ckpt::MANIFEST), &[&manifest[..], b" "].concat()).unwrap();
    assert!(matches!(ckpt::verify(&fs, &dir), Err(CkptError::Damaged { .. })));
    // A checkpoint under another step's name is not that step.
    fs.remove_tree(&dir).unwrap();
    fs.rename(&ckpt::step_dir(Path::new(ROOT), 1), &dir).unwrap();
    assert!(matches!(ckpt::verify(&fs, &dir), Err(CkptError::Damaged { .. })));
}

#[test]
fn with_checkpoints_and_none_whole_nothing_starts_over_silently() {
    let fs = disk();
    for step in 1..=2 {
        fs.flip(&ckpt::step_dir(Path::new(ROOT), step).join(NAMES[1]), 5).unwrap();
    }
    assert!(matches!(
        ckpt::newest(&fs, Path::new(ROOT), &mut |_| {}),
        Err(CkptError::NoneVerifies { found: 2, .. })
    ));
    assert!(ckpt::newest(&FaultFs::new(), Path::new(ROOT), &mut |_| {}).unwrap().is_none());
}

#[test]
fn pruning_keeps_two_that_verify_and_every_end_of_a_phase() {
    let fs = FaultFs::new();
    let root = Path::new(ROOT);
    let steps = |fs: &FaultFs| {
        (1..=9).filter(|&s| fs.exists(&ckpt::step_dir(root, s)).unwrap()).collect::<Vec<u64>>()
    };
    for step in 1..=3 {
        save_and_prune(&fs, root, 2, snapshot(step, step == 1), &mut Known::default()).unwrap();
    }
    save(&fs, 4).unwrap();
    assert_eq!(steps(&fs), [1, 3, 4]);
    // A damaged one does not count among the two, so the older whole ones stay.
    fs.flip(&ckpt::step_dir(root, 4).join(NAMES[1]), 9).unwrap();
    save(&fs, 5).unwrap();
    assert_eq!(steps(&fs), [1, 3, 4, 5]);
    save(&fs, 6).unwrap();
    assert_eq!(steps(&fs), [1, 5, 6]);
    // A request for fewer than two is not honoured.
    ckpt::prune(&fs, root, 0, &mut Known::default()).unwrap();
    assert_eq!(steps(&fs), [1, 5, 6]);
    assert_eq!(fs.read(&root.join(ckpt::LATEST)).unwrap(), b"step-6\n");
}

#[test]
fn a_resumed_run_replaces_a_damaged_checkpoint_and_leaves_a_whole_one() {
    let fs = disk();
    let dir = ckpt::step_dir(Path::new(ROOT), 2);
    let ops = fs.ops();
    save(&fs, 2).unwrap();
    let repeated = fs.ops() - ops;
    fs.flip(&dir.join(NAMES[1]), 1).unwrap();
    save(&fs, 2).unwrap();
    assert!(fs.ops() - ops - repeated > repeated, "a whole checkpoint was written again");
    assert_eq!(load(&fs), Some(2));
}

#[test]
fn the_background_thread_reports_what_came_of_each_save() {
    let fs = FaultFs::new();
    let mut saver = Saver::new(Arc::new(fs.clone()), ROOT.into(), 2);
    assert!(saver.poll().is_none());
    assert!(saver.start(snapshot(1, false)).is_none());
    let second = saver.start(snapshot(2, false));
    assert_eq!(second.unwrap().unwrap().head.step, 1);
    assert_eq!(saver.finish().unwrap().unwrap().head.step, 2);
    fs.plan(Some(Fault { at: fs.ops(), kind: FaultKind::Enospc, forever: true }));
    saver.start(snapshot(3, false));
    assert!(matches!(saver.finish(), Some(Err(CkptError::Io { .. }))));
    fs.plan(None);
    let mut bad = snapshot(3, false);
    bad.files.push(FileJob { name: "x".into(), bytes: 1, write: Box::new(|_| panic!("no")) });
    saver.start(bad);
    assert!(matches!(saver.finish(), Some(Err(CkptError::Died { .. }))));
    saver.start(snapshot(3, false));
    assert_eq!(saver.finish().unwrap().unwrap().head.step, 3);
    assert_eq!(load(&fs), Some(3));
}
