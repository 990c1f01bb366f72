use super::*;

const GOOD: &str = r#"
seed = 3
model = "zamba-7b"
sequence = 128
micro_batch = 2
global_batch = 8
checkpoint_every = 10

[optimiser]
weight_decay = 0.05

[[phase]]
name = "pretrain"
steps = 100
peak = 1e-3
warmup = 10
schedule = { kind = "cosine", end = 1e-4 }
sources = [{ name = "web", path = "data/web", weight = 3 }, { name = "code", path = ["data/c1", "data/c2"], weight = 1 }]

[[phase]]
name = "anneal"
tokens = 20_000
peak = 7e-4
warmup = 2
warmup_from = "previous"
schedule = { kind = "exponential", end = 1e-6 }
sources = [{ name = "docs", path = "data/docs", weight = 1 }]
replay = { phase = "pretrain", fraction = 0.6 }
"#;

fn parse(text: &str, sets: &[&str]) -> Result<Recipe, RecipeError> {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::parse(text, Path::new("runs/test.toml"), &sets)
}

#[test]
fn a_good_recipe_is_read_and_laid_out() {
    let recipe = parse(GOOD, &[]).unwrap();
    assert_eq!(recipe.accumulation(), 4);
    assert_eq!(recipe.optimiser, Optimiser { weight_decay: 0.05, ..Optimiser::default() });
    assert_eq!(recipe.resolve(Path::new("data/web")), Path::new("runs/data/web"));
    let plan = Plan::new(&recipe).unwrap();
    assert_eq!(plan.steps(), 100 + 20);
    assert_eq!(plan.place(99), (0, 99));
    assert_eq!(plan.place(100), (1, 0));
    assert_eq!(plan.place(120), (1, 20));
    assert!(plan.ends_phase(100) && plan.ends_phase(120) && !plan.ends_phase(99));
    // The second warm-up starts from the 1e-4 at which the cosine ended.
    assert!((plan.lr(100) - (1e-4 + 3e-4)).abs() < 1e-12);
    assert!((plan.lr(101) - 7e-4).abs() < 1e-12);
    assert!((plan.lr(120) - 1e-6).abs() < 1e-12);
}

#[test]
fn sets_reach_every_level() {
    let sets = [
        "seed=9",
        "optimiser.clip=0.5",
        "phase.anneal.peak=5e-4",
        "phase.0.sources.web.weight=7",
        "model=tiny.json",
        "phase.0.schedule.kind=linear",
    ];
    let recipe = parse(GOOD, &sets).unwrap();
    assert_eq!(recipe.seed, 9);
    assert_eq!(recipe.optimiser.clip, 0.5);
    assert_eq!(recipe.phase[1].peak, 5e-4);
    assert_eq!(recipe.phase[0].sources[0].weight, 7.0);
    assert_eq!(recipe.model, ModelSource::Named("tiny.json".into()));
    assert_eq!(recipe.phase[0].schedule, Shape::Linear { end: 1e-4 });
}

#[test]
fn errors_name_the_key() {
    for (sets, word) in [
        (&["sede=1"][..], "sede"),
        (&["optimiser.lr=1"], "lr"),
        (&["phase.2.steps=1"], "phase.2.steps"),
        (&["phase.steps"], "phase.steps"),
        (&["seed.x=1"], "seed.x"),
        (&["micro_batch=3"], "global_batch"),
        (&["sequence=0"], "sequence"),
        (&["keep=1"], "keep"),
        (&["optimiser.beta2=1.0"], "optimiser.beta2"),
        (&["optimiser.eps=nan"], "optimiser.eps"),
        (&["phase.anneal.steps=5"], "phase.anneal.steps"),
        (&["phase.anneal.peak=-1.0"], "phase.anneal.peak"),
        (&["phase.anneal.schedule.end=1.0"], "phase.anneal.schedule.end"),
        (&["phase.anneal.schedule.gamma=0.0"], "phase.anneal.schedule.gamma"),
        (&["phase.anneal.replay.phase=later"], "phase.anneal.replay.phase"),
        (&["phase.anneal.replay.fraction=1.5"], "phase.anneal.replay.fraction"),
        (&["phase.anneal.sources.docs.weight=0.0"], "phase.anneal.sources.docs.weight"),
        (&["phase.anneal.sources.docs.max_epochs=0"], "phase.anneal.sources.docs.max_epochs"),
        (&["phase.anneal.sources.docs.name=web"], "phase.anneal.sources.web"),
        (&["phase.anneal.name=pretrain"], "phase.1.name"),
        (&["phase.0.schedule.kind=spiral"], "spiral"),
        (&["compute=f16"], "f16"),
        (&["peak_tflops=0.0"], "peak_tflops"),
    ] {
        let error = parse(GOOD, sets).unwrap_err().to_string();
        assert!(error.contains(word), "{sets:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = parse(&GOOD.replace("seed = 3", "sede = 3"), &[]).unwrap_err().to_string();
    assert!(error.contains("sede") && error.contains("line 2"), "{error}");
    let long = parse(GOOD, &["phase.0.warmup=101"]).and_then(|r| Plan::new(&r)).unwrap_err().to_string();
    assert!(long.contains("phase.pretrain.warmup"), "{long}");
}

#[test]
fn what_weights_depend_on_is_hashed_and_differences_are_named() {
    let fs = zamba_data::fs::RealFs;
    let of = |sets: &[&str], phase| {
        let recipe = parse(GOOD, sets).unwrap();
        let config = recipe.model_config(&fs).unwrap();
        trajectory(&recipe, &config, &Plan::new(&recipe).unwrap(), phase)
    };
    let base = of(&[], 0);
    assert_eq!(base, of(&["checkpoint_every=3", "micro_batch=4", "keep=5"], 0));
    assert_eq!(base, of(&["phase.anneal.peak=1e-5"], 0), "a later phase may still be changed");
    assert_eq!(differences(&of(&[], 1), &of(&["phase.anneal.peak=1e-5"], 1)), ["phases.1.peak"]);
    assert_eq!(differences(&base, &of(&["seed=4", "optimiser.clip=0.5"], 0)), ["seed", "optimiser.clip"]);
    assert_ne!(trajectory_sha256(&base), trajectory_sha256(&of(&["seed=4"], 0)));
}

#[test]
fn published_type_follows_compute_unless_stated() {
    let fs = zamba_data::fs::RealFs;
    let dtype = |sets: &[&str]| parse(GOOD, sets).unwrap().model_config(&fs).unwrap().dtype.torch_name();
    assert_eq!(dtype(&[]), "float32");
    assert_eq!(dtype(&["compute=bf16"]), "bfloat16");
    assert_eq!(dtype(&["compute=bf16", "publish=f32"]), "float32");
}

#[test]
fn benchmarks_need_names_and_a_tokenizer() {
    let eval = |more: &str| format!("{}\n[eval]\nevery = 5\n{more}\n", GOOD);
    let tasks = "tasks = { names = [\"piqa\"], data = \"b\", limit = 0.5 }";
    let error = parse(&eval(tasks), &[]).unwrap_err().to_string();
    assert!(error.contains("`tokenizer`"), "{error}");
    let recipe = parse(&eval(tasks), &["tokenizer=tok/tokenizer.json"]).unwrap();
    let eval_of = recipe.eval.as_ref().unwrap();
    assert_eq!((eval_of.every, eval_of.shards.len()), (5, 0));
    assert_eq!(eval_of.tasks.as_ref().unwrap().limit, Some(0.5));
    for (more, key) in [
        ("", "eval"),
        ("tasks = { names = [], data = \"b\" }", "eval.tasks.names"),
        ("tasks = { names = [\"a\"], data = \"b\", limit = 0 }", "limit"),
        ("tasks = { names = [\"a\"], data = \"b\", shots = 1 }", "shots"),
    ] {
        let error = parse(&eval(more), &["tokenizer=tok/tokenizer.json"]).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}
