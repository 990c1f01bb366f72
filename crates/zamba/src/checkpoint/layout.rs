//! From the names in a file to the tensors of the model.
//!
//! Two layouts exist. Today's names are those of [`crate::spec`]. Checkpoints of the model authors'
//! fork of transformers (`Zyphra/transformers_zamba`, `modeling_zamba.py`) keep the shared block, the
//! linear maps and the Mamba layers in three lists, and compute the feed-forward part as
//! `down(act(up x) * gate x)` where today's code has `down(act(gate x) * up x)`: the two names changed
//! places. Either kind may hold copies of shared tensors under the other places that use them.

use std::collections::BTreeMap;

use super::LoadError;
use crate::config::ZambaConfig;
use crate::spec::TensorSpec;

/// Where a tensor of the model is in the file, by name, and the copies of it that must be equal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) copies: Vec<String>,
}

/// A place for each of `specs`, in order.
///
/// # Errors
/// If a tensor is missing, or one of `found` belongs to no place.
pub(super) fn places<T>(
    config: &ZambaConfig,
    specs: &[TensorSpec],
    found: &BTreeMap<String, T>,
) -> Result<Vec<Place>, LoadError> {
    let old =
        found.keys().any(|name| name.starts_with("model.block.") || name.starts_with("model.mamba_layers."));
    let mut used = 0;
    let mut missing = Vec::new();
    let mut places = Vec::with_capacity(specs.len());
    for spec in specs {
        let names = if old { vec![old_name(config, &spec.name)] } else { homes(config, &spec.name) };
        let names = names.into_iter().chain(head_copy(config, &spec.name));
        let mut present = names.filter(|name| found.contains_key(name));
        let Some(name) = present.next() else {
            missing.push(spec.name.clone());
            continue;
        };
        let copies: Vec<String> = present.collect();
        used += 1 + copies.len();
        places.push(Place { name, copies });
    }
    if !missing.is_empty() {
        return Err(LoadError::Missing { tensor: missing.swap_remove(0), count: missing.len() + 1 });
    }
    if used != found.len() {
        let known: std::collections::HashSet<&str> =
            places.iter().flat_map(|p| p.copies.iter().chain([&p.name])).map(String::as_str).collect();
        let extra = found.keys().find(|name| !known.contains(name.as_str()));
        let tensor = extra.cloned().unwrap_or_default();
        return Err(LoadError::Extra { tensor, count: found.len() - used });
    }
    Ok(places)
}

/// Names under which a tensor is written besides its own; see [`super::save::stored`].
pub(super) fn written_copies(config: &ZambaConfig, name: &str) -> Vec<String> {
    let needed = !config.tie_word_embeddings && name.contains(".shared_transf.");
    if needed { homes(config, name).split_off(1) } else { Vec::new() }
}

/// A tied head is sometimes written out beside the embedding.
fn head_copy(config: &ZambaConfig, name: &str) -> Option<String> {
    (config.tie_word_embeddings && name == "model.embed_tokens.weight").then(|| "lm_head.weight".to_owned())
}

/// The names a tensor may have in today's layout: a tensor of the shared block under any hybrid layer.
fn homes(config: &ZambaConfig, name: &str) -> Vec<String> {
    match name.split_once(".shared_transf.") {
        Some((_, rest)) => config
            .hybrid_layers()
            .into_iter()
            .map(|layer| format!("model.layers.{layer}.shared_transf.{rest}"))
            .collect(),
        None => vec![name.to_owned()],
    }
}

/// The name in the fork's layout of a tensor that today is called `name`.
fn old_name(config: &ZambaConfig, name: &str) -> String {
    let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return name.to_owned();
    };
    if let Some(rest) = rest.strip_prefix("shared_transf.") {
        return match rest {
            "feed_forward.gate_proj.weight" => "model.block.feed_forward.up_proj.weight".into(),
            "feed_forward.up_proj.weight" => "model.block.feed_forward.gate_proj.weight".into(),
            rest => format!("model.block.{rest}"),
        };
    }
    if rest == "linear.weight" {
        let ordinal = config.hybrid_layers().iter().position(|i| i.to_string() == layer).unwrap_or(0);
        return format!("model.linear_layers.{ordinal}.weight");
    }
    format!("model.mamba_layers.{layer}.{}", rest.strip_prefix("mamba_decoder.").unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tensors;

    fn map(names: &[String]) -> BTreeMap<String, ()> {
        names.iter().map(|name| (name.clone(), ())).collect()
    }

    #[test]
    fn old_names_are_those_of_the_fork() {
        let config = ZambaConfig::preset("zamba-7b").unwrap();
        let old = |name: &str| old_name(&config, name);
        assert_eq!(old("model.layers.13.linear.weight"), "model.linear_layers.2.weight");
        assert_eq!(old("model.layers.13.mamba_decoder.mamba.D"), "model.mamba_layers.13.mamba.D");
        assert_eq!(old("model.layers.3.mamba.A_log"), "model.mamba_layers.3.mamba.A_log");
        let shared = "model.layers.2.shared_transf";
        assert_eq!(old(&format!("{shared}.self_attn.q_proj.weight")), "model.block.self_attn.q_proj.weight");
        assert_eq!(
            old(&format!("{shared}.feed_forward.gate_proj.weight")),
            "model.block.feed_forward.up_proj.weight"
        );
        assert_eq!(
            old(&format!("{shared}.feed_forward.up_proj.weight")),
            "model.block.feed_forward.gate_proj.weight"
        );
        assert_eq!(old("model.final_layernorm.weight"), "model.final_layernorm.weight");
    }

    #[test]
    fn places_name_copies_missing_and_extra() {
        let config = ZambaConfig::preset("tiny").unwrap();
        let specs = tensors(&config);
        let mut names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        let plain = places(&config, &specs, &map(&names)).unwrap();
        assert!(plain.iter().zip(&names).all(|(place, name)| place.name == *name && place.copies.is_empty()));
        names.push("lm_head.weight".into());
        names.push("model.layers.7.shared_transf.pre_ff_layernorm.weight".into());
        let copied = places(&config, &specs, &map(&names)).unwrap();
        assert_eq!(copied.iter().map(|place| place.copies.len()).sum::<usize>(), 2);
        names.push("model.layers.3.shared_transf.pre_ff_layernorm.weight".into());
        let error = places(&config, &specs, &map(&names)).unwrap_err();
        assert!(matches!(error, LoadError::Extra { ref tensor, count: 1 } if tensor.contains("layers.3")));
        names.retain(|name| !name.contains("layers.4."));
        let error = places(&config, &specs, &map(&names)).unwrap_err();
        assert!(
            matches!(error, LoadError::Missing { ref tensor, count: 10 } if tensor.contains("layers.4."))
        );
    }
}
