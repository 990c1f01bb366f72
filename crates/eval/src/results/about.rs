//! What results say about a run besides its figures.

use serde_json::{Value, json};

/// What results say about a run besides its figures.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// Name or folder of the model.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// The type that its weights are stored in.
    pub dtype: String,
    /// Most tokens that it sees at once.
    pub max_length: usize,
    /// `--limit`
    pub limit: Option<f64>,
    /// Seed of the choice of shots.
    pub seed: u64,
    /// When the run began, in seconds since 1970.
    pub date: f64,
    /// How long it took.
    pub seconds: f64,
    /// Version of this program.
    pub version: String,
    /// BOS and EOS: text and id.
    pub bos: Option<(String, u32)>,
    /// See `bos`.
    pub eos: Option<(String, u32)>,
}

impl About {
    /// Adds all of it to a document of results.
    pub(super) fn describe(&self, document: &mut Value) {
        let token = |token: &Option<(String, u32)>| match token {
            Some((text, id)) => json!([text, id.to_string()]),
            None => json!(["None", "None"]),
        };
        document["config"] = json!({
            "model": "zamba",
            "model_args": {"pretrained": self.model},
            "model_num_parameters": self.parameters,
            "model_dtype": self.dtype,
            "batch_size": null,
            "batch_sizes": [],
            "device": "cpu",
            "use_cache": null,
            "limit": self.limit,
            "bootstrap_iters": 100_000,
            "gen_kwargs": null,
            "fewshot_seed": self.seed,
        });
        document["git_hash"] = Value::Null;
        document["date"] = json!(self.date);
        document["lm_eval_version"] = format!("0.4.13 as understood by zamba {}", self.version).into();
        document["tokenizer_eos_token"] = token(&self.eos);
        document["tokenizer_bos_token"] = token(&self.bos);
        document["eot_token_id"] = self.eos.as_ref().map(|(_, id)| *id).into();
        document["max_length"] = self.max_length.into();
        document["model_source"] = "zamba".into();
        document["model_name"] = self.model.as_str().into();
        document["model_name_sanitized"] = sanitize(&self.model).into();
        for absent in ["system_instruction", "system_instruction_sha", "chat_template", "chat_template_sha"] {
            document[absent] = Value::Null;
        }
        document["fewshot_as_multiturn"] = false.into();
    }
}

/// A name that can be a folder's: `re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)`.
pub fn sanitize(name: &str) -> String {
    let bad = |c: char| matches!(c, '"' | '<' | '>' | ':' | '/' | '|' | '\\' | '?' | '*' | '[' | ']');
    let mut out = String::new();
    let mut inside = false;
    for c in name.chars() {
        if !bad(c) {
            out.push(c);
        } else if !inside {
            out.push_str("__");
        }
        inside = bad(c);
    }
    out
}
