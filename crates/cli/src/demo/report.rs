//! `report.html`: one page that needs nothing else.

use std::fmt::Write;

use zamba_train::log::StepRecord;

use super::corpus::{kind_words, rule_words};
use super::results::{PartScores, SAMPLING};
use super::summary::Summary;
use super::{chart, plan};
use crate::html::escape;
use crate::out::{bytes, count};

const STYLE: &str = include_str!("report.css");

/// The page.
pub(super) fn html(summary: &Summary, records: &[StepRecord]) -> anyhow::Result<String> {
    let chapters = [
        lead(summary),
        scores(summary),
        curves(summary, records)?,
        text(summary),
        model(summary),
        samples(summary),
        commands(summary),
    ];
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>A small Zamba's life</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
        chapters.concat()
    ))
}

/// A table; the first column is words, the others are numbers. Cells are HTML already.
fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let class = |column: usize| if column == 0 { "" } else { " class=\"n\"" };
    let mut html = "<div class=\"scroll\"><table>\n<tr>".to_owned();
    for (column, name) in head.iter().enumerate() {
        let _ = write!(html, "<th{}>{name}</th>", class(column));
    }
    html.push_str("</tr>\n");
    for row in rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(html, "<td{}>{cell}</td>", class(column));
        }
        html.push_str("</tr>\n");
    }
    html + "</table></div>\n"
}

fn lead(s: &Summary) -> String {
    format!(
        "<h1>A small Zamba's life</h1>\n<p class=\"lead\">Text of {} was gathered, a tokenizer and a model of {} parameters \
         were trained on it in two phases, and the model was measured on text that it had never seen. All of it took {:.0} \
         seconds on {}.</p>\n",
        escape(&s.corpus.source),
        count(s.model.parameters),
        s.seconds.total,
        escape(&s.device)
    )
}

fn scores(s: &Summary) -> String {
    let mut html = "<h2>How good is it?</h2>\n<p>Bits per byte of held-out text: the size to which each model would \
        compress it. Less is better, and 8 would be no model at all. The unigram model knows how frequent each token is in \
        the training text; <code>gzip -9</code> sees all documents of a part in one stream; the Zamba sees each document from \
        its beginning, by itself.</p>\n"
        .to_owned();
    let row = |p: &PartScores| {
        let numbers = [p.unigram, p.gzip, p.phase1, p.phase2].map(|bits| format!("{bits:.3}"));
        [p.part.title().to_owned(), count(p.documents), count(p.bytes)].into_iter().chain(numbers).collect()
    };
    let head = ["held-out part", "documents", "bytes", "unigram", "gzip -9", "phase 1", "phase 2"];
    html.push_str(&table(&head, s.bits_per_byte.iter().map(row)));
    let highest =
        s.bits_per_byte.iter().flat_map(|p| [p.unigram, p.gzip, p.phase1, p.phase2]).fold(0.0, f64::max);
    for p in &s.bits_per_byte {
        let _ = write!(html, "<h3>{}</h3>\n<div class=\"bars\">\n", p.part.title());
        let bars = [
            ("unigram", "", p.unigram),
            ("gzip -9", "", p.gzip),
            ("phase 1", "one", p.phase1),
            ("phase 2", "two", p.phase2),
        ];
        for (name, class, bits) in bars {
            let width = 100.0 * bits / highest;
            let _ = writeln!(
                html,
                "<span>{name}</span><span class=\"track\"><div class=\"bar {class}\" style=\"width:{width:.1}%\"></div></span>\
                 <span class=\"value\">{bits:.3}</span>"
            );
        }
        html.push_str("</div>\n");
    }
    html.push_str("<h3>What annealing did</h3>\n");
    for p in &s.bits_per_byte {
        let _ = writeln!(html, "<p>{}: {}.</p>", capital(p.part.title()), change(p.phase1, p.phase2));
    }
    html.push_str(
        "<p class=\"note\">Phase 2 trains on documentation prose with most of phase 1's data repeated, while the learning rate \
         falls to almost nothing. The falling rate by itself lowers both figures; the new data moves them apart.</p>\n",
    );
    html
}

fn capital(words: &str) -> String {
    let mut chars = words.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// From one figure to another, in words.
fn change(before: f64, after: f64) -> String {
    let (difference, percent) = (after - before, 100.0 * (after - before).abs() / before);
    let verdict = match difference {
        d if d < 0.0 => "better",
        d if d > 0.0 => "worse: that is what it cost",
        _ => "no change",
    };
    format!("{before:.3} to {after:.3} bits per byte ({difference:+.3}, {percent:.1} % {verdict})")
}

fn curves(s: &Summary, records: &[StepRecord]) -> anyhow::Result<String> {
    let mut html = format!(
        "<h2>Training</h2>\n<figure><div class=\"scroll\">{}</div><figcaption>Loss of each step (faint) with its running mean, and the learning \
         rate.</figcaption></figure>\n",
        chart::svg(records)?
    );
    let phases = s.run.phases.iter().map(|p| {
        let [peak, end] = p.learning_rates;
        let [first, last] = p.losses;
        let name = escape(&p.name);
        let rate = |rate: f64| format!("{rate:.1e}");
        vec![name, count(p.steps), rate(peak), rate(end), format!("{first:.3}"), format!("{last:.3}")]
    });
    let head = ["phase", "steps", "highest rate", "last rate", "first loss", "last loss"];
    html.push_str(&table(&head, phases));
    let sources = s.run.phases.iter().flat_map(|p| p.sources.iter().map(move |source| (p, source)));
    let rows = sources.map(|(p, source)| {
        let name = format!("{}: {}", escape(&p.name), escape(&source.name));
        vec![name, count(source.tokens), format!("{:.2}", source.epochs)]
    });
    html.push_str(&table(&["phase and source", "tokens", "epochs so far"], rows));
    let (rate, skipped) = (s.run.tokens_per_second, s.run.skipped_steps);
    let _ = writeln!(
        html,
        "<p>{} tokens in {:.0} seconds: {rate:.0} tokens per second. {} steps were skipped by the guards.</p>\n\
         <p class=\"note\">How many steps fit into the time was measured on this machine, unless <code>--steps</code> was \
         given; with the same number of steps, text and seed ({}) every figure but the times is the same again.</p>",
        count(s.run.tokens),
        s.run.seconds,
        count(skipped),
        s.seed
    );
    Ok(html)
}

fn text(s: &Summary) -> String {
    let c = &s.corpus;
    let mut html = format!(
        "<h2>Text</h2>\n<p>{} files in {} packages of {}.</p>\n",
        count(c.files),
        count(c.packages),
        escape(&c.source)
    );
    let rows = c.left_out.iter().map(|(rule, n)| {
        let size = if n.bytes == 0 { "not opened".to_owned() } else { bytes(n.bytes) };
        vec![escape(&rule_words(*rule)), count(n.files), size]
    });
    html.push_str(&table(&["left out", "files", "size"], rows));
    let rows =
        c.kept.iter().map(|(kind, n)| vec![kind_words(*kind).to_owned(), count(n.files), bytes(n.bytes)]);
    html.push_str(&table(&["kept", "documents", "size"], rows));
    for part in &c.cleaned {
        let rejected = part.rejected.iter().map(|(rule, n)| (format!("filter: {}", escape(rule)), *n));
        let rows = rejected.chain([
            ("equal to another text".to_owned(), part.equal),
            ("nearly equal to another text".to_owned(), part.near),
            (format!("<b>left of {}</b>", count(part.gathered)), part.documents),
        ]);
        let head = format!("taken out of {}", part.part.title());
        html.push_str(&table(&[head.as_str(), "texts"], rows.map(|(what, n)| vec![what, count(n)])));
    }
    let rows = c.shards.iter().map(|shard| {
        let per = shard.bytes as f64 / shard.tokens.max(1) as f64;
        let name = format!("<code>{}</code>", shard.name);
        vec![name, count(shard.documents), count(shard.bytes), count(shard.tokens), format!("{per:.2}")]
    });
    let head = ["tokenised", "texts", "bytes", "tokens", "bytes per token"];
    html.push_str(&table(&head, rows));
    let (groups, what) =
        (c.split.groups.len(), if c.split.by_family { "families of crates" } else { "single documents" });
    let _ = writeln!(
        html,
        "<p class=\"note\">{groups} {what} were held out whole ({} of text and {} of documentation prose); a sample of whole \
         documents, spread evenly over them and without the longest, is what is measured. Training text is cut into pieces of at most 2 KiB, so that steps that follow each other see \
         different documents. The tokenizer, a byte-level BPE of \
         {} entries, learnt from {} of the training text.</p>",
        bytes(c.split.text_bytes),
        bytes(c.split.doc_prose_bytes),
        count(c.tokenizer.vocabulary.into()),
        bytes(c.tokenizer.trained_on_bytes as u64)
    );
    html
}

fn model(s: &Summary) -> String {
    let m = &s.model;
    let hybrid = m.hybrid_layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" and ");
    let rows = [
        ("parameters", count(m.parameters)),
        ("layers", m.layers.to_string()),
        ("layers that call the shared attention block", hybrid),
        ("width", m.hidden_size.to_string()),
        ("vocabulary", count(m.vocabulary as u64)),
        ("tokens per row, rows per step", format!("{}, {}", plan::SEQUENCE, plan::BATCH)),
    ];
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    let mut html = "<h2>Model and time</h2>\n".to_owned() + &table(&["model", ""], rows);
    let order = ["gather", "tokenise", "plan", "train", "evaluate"];
    let rows = order.iter().filter_map(|name| {
        let seconds = s.seconds.chapters.get(name)?;
        Some(vec![(*name).to_owned(), format!("{seconds:.1}")])
    });
    html.push_str(&table(&["time", "seconds"], rows));
    html
}

fn samples(s: &Summary) -> String {
    let mut html = format!(
        "<h2>What it writes</h2>\n<p class=\"note\">The prompt is bold. Sampling: {SAMPLING}, seed {}. A model of this size \
         and age writes the form of text, not sense.</p>\n<div class=\"pair\">\n",
        s.seed
    );
    let half = s.samples.len().div_ceil(2);
    for (first, second) in s.samples.iter().zip(s.samples.iter().skip(half)) {
        for sample in [first, second] {
            let _ = writeln!(
                html,
                "<div><h3>Phase {}</h3>\n<pre><b>{}</b>{}</pre></div>",
                sample.phase,
                escape(sample.prompt),
                escape(sample.text.trim_end())
            );
        }
    }
    html + "</div>\n"
}

fn commands(s: &Summary) -> String {
    let out = escape(&s.out.display().to_string());
    format!(
        "<h2>How to go on</h2>\n\
         <pre>zamba generate -m {out}/phase2 -p \"This crate\"\n\
         zamba info -m {out}/phase2\n\
         zamba demo --minutes 15 --out {out}-longer</pre>\n\
         <p>The run is a recipe like any other. Change it, and train again:</p>\n\
         <pre>zamba train {out}/recipe.toml --out another-run --set seed=1</pre>\n\
         <p>The models are folders that Hugging Face transformers reads:</p>\n\
         <pre>from transformers import AutoModelForCausalLM, AutoTokenizer\n\
         model = AutoModelForCausalLM.from_pretrained(\"{out}/phase2\")\n\
         tokenizer = AutoTokenizer.from_pretrained(\"{out}/phase2\")</pre>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_as_what_they_are() {
        assert_eq!(change(2.0, 1.9), "2.000 to 1.900 bits per byte (-0.100, 5.0 % better)");
        assert!(change(2.0, 2.1).contains("+0.100") && change(2.0, 2.1).contains("cost"));
    }
}
