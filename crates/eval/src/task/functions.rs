//! What task files name with `!function`: where lm-evaluation-harness has Python, this program has Rust.

use fancy_regex::Regex;
use serde_json::Value;

use crate::python::{self, Doc, capitalize, literal_eval, strip};

/// What is wrong with a document, with the name of the field.
pub(crate) type Wrong = String;

/// Makes the value of a template.
pub(crate) type DocFunction = fn(&Doc) -> Result<Value, Wrong>;
/// Adds to a document, or changes it.
pub(crate) type ProcessFunction = fn(&mut Doc) -> Result<(), Wrong>;
/// Words and bytes by which the likelihood of a document is measured.
pub(crate) type CountFunction = fn(&Doc) -> Result<(u64, u64), Wrong>;

/// Functions for `doc_to_text`, `doc_to_target` and `doc_to_choice`.
pub(crate) const DOC: &[(&str, DocFunction)] = &[
    ("winogrande.doc_to_text", winogrande_text),
    ("winogrande.doc_to_target", winogrande_target),
    ("winogrande.doc_to_choice", winogrande_choice),
    ("race.doc_to_text", race_text),
    ("race.doc_to_target", race_target),
    ("race.doc_to_choice", race_choice),
    ("wikitext.detokenizer", wikitext_detokenizer),
];

/// Functions for `process_docs`.
pub(crate) const PROCESS: &[(&str, ProcessFunction)] = &[("hellaswag.process_docs", hellaswag_process)];

/// Functions for `process_results`.
pub(crate) const COUNT: &[(&str, CountFunction)] = &[("wikitext.process_results", wikitext_counts)];

/// The function of a name.
pub(crate) fn find<F: Copy>(known: &[(&str, F)], name: &str) -> Result<F, String> {
    let found = known.iter().find(|(n, _)| *n == name).map(|(_, f)| *f);
    found.ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(n, _)| *n).collect();
        format!("there is no function {name}; there are {}", names.join(", "))
    })
}

/// A field that holds text.
pub(crate) fn text<'d>(doc: &'d Doc, field: &str) -> Result<&'d str, Wrong> {
    match doc.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("field `{field}` is {} and must be text", kind(other))),
        None => Err(format!("there is no field `{field}`")),
    }
}

/// What a value is, in a word.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a structure",
    }
}

fn texts<'d>(doc: &'d Doc, field: &str) -> Result<Vec<&'d str>, Wrong> {
    let wrong = || format!("field `{field}` must be a list of texts");
    let items = doc.get(field).ok_or_else(|| format!("there is no field `{field}`"))?;
    let items = items.as_array().ok_or_else(wrong)?;
    items.iter().map(|v| v.as_str().ok_or_else(wrong)).collect()
}

fn hellaswag_process(doc: &mut Doc) -> Result<(), Wrong> {
    let context = format!("{} {}", text(doc, "ctx_a")?, capitalize(text(doc, "ctx_b")?));
    let query = hellaswag_clean(&format!("{}: {context}", text(doc, "activity_label")?));
    let choices: Vec<Value> =
        texts(doc, "endings")?.into_iter().map(|e| Value::String(hellaswag_clean(e))).collect();
    let label = match doc.get("label") {
        Some(Value::Number(n)) => n.as_i64(),
        Some(Value::String(label)) => strip(label).parse().ok(),
        _ => None,
    };
    let gold = label.ok_or("field `label` must be a whole number, as text or not")?;
    doc.insert("query".to_owned(), Value::String(query));
    doc.insert("choices".to_owned(), Value::Array(choices));
    doc.insert("gold".to_owned(), gold.into());
    Ok(())
}

fn hellaswag_clean(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    replace(r"\[.*?\]", &text, "").replace("  ", " ")
}

/// `re.sub` of a pattern that is part of this program.
fn replace(pattern: &str, text: &str, by: &str) -> String {
    let regex = Regex::new(pattern).expect("a pattern of this program is valid");
    regex.replace_all(text, by).into_owned()
}

fn winogrande_gap(doc: &Doc) -> Result<(&str, &str), Wrong> {
    let sentence = text(doc, "sentence")?;
    sentence.split_once('_').ok_or_else(|| "field `sentence` has no `_` to be filled".to_owned())
}

fn winogrande_text(doc: &Doc) -> Result<Value, Wrong> {
    match text(doc, "answer")? {
        "1" => Ok(0.into()),
        "2" => Ok(1.into()),
        other => Err(format!("field `answer` is `{other}` and must be `1` or `2`")),
    }
}

fn winogrande_target(doc: &Doc) -> Result<Value, Wrong> {
    Ok(strip(winogrande_gap(doc)?.1).into())
}

fn winogrande_choice(doc: &Doc) -> Result<Value, Wrong> {
    let (before, _) = winogrande_gap(doc)?;
    let fill = |field| Ok::<_, Wrong>(Value::String(format!("{before}{}", text(doc, field)?)));
    Ok(Value::Array(vec![fill("option1")?, fill("option2")?]))
}

/// A question of an article.
struct Problem {
    question: String,
    options: Vec<String>,
    answer: usize,
}

fn race_problems(doc: &Doc) -> Result<Vec<Problem>, Wrong> {
    let wrong = |what: &str| format!("field `problems`: {what}");
    let list = literal_eval(text(doc, "problems")?).map_err(|e| wrong(&e))?;
    let list = list.as_array().filter(|l| !l.is_empty()).ok_or_else(|| wrong("no list of problems"))?;
    let read = |problem: &Value| {
        let problem = problem.as_object().ok_or("a problem is no structure")?;
        let options: Vec<String> = texts(problem, "options")?.into_iter().map(str::to_owned).collect();
        if options.len() < 4 {
            return Err(format!("{} options, and there must be 4", options.len()));
        }
        let letter = text(problem, "answer")?;
        let answer = ["A", "B", "C", "D"].iter().position(|l| *l == letter);
        let answer = answer.ok_or_else(|| format!("the answer is `{letter}` and must be A, B, C or D"))?;
        Ok(Problem { question: text(problem, "question")?.to_owned(), options, answer })
    };
    list.iter().map(|p| read(p).map_err(|e: String| wrong(&e))).collect()
}

fn race_text(doc: &Doc) -> Result<Value, Wrong> {
    let problems = race_problems(doc)?;
    let mut out = format!("Article: {}\n\n", text(doc, "article")?);
    let Some((last, earlier)) = problems.split_last() else { return Ok(out.into()) };
    for problem in earlier {
        let answer = &problem.options[problem.answer];
        match problem.question.strip_suffix("  _  .") {
            // One of the spaces stays.
            Some(start) => out.push_str(&format!("{start} {answer}\n")),
            None => out.push_str(&format!("Question: {}\nAnswer: {answer}\n", problem.question)),
        }
    }
    out.push_str(&last.question);
    Ok(out.into())
}

fn race_last(doc: &Doc) -> Result<Problem, Wrong> {
    race_problems(doc)?.pop().ok_or_else(|| "field `problems` is empty".to_owned())
}

fn race_target(doc: &Doc) -> Result<Value, Wrong> {
    Ok(race_last(doc)?.answer.into())
}

fn race_choice(doc: &Doc) -> Result<Value, Wrong> {
    let options = race_last(doc)?.options;
    Ok(options.into_iter().take(4).map(Value::String).collect())
}

fn wikitext_detokenizer(doc: &Doc) -> Result<Value, Wrong> {
    let mut page = text(doc, "page")?.replace("s '", "s'");
    page = replace(r"/' [0-9]/", &page, "/'[0-9]/");
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        page = page.replace(from, to);
    }
    for (from, to) in [
        (r"\(\s*([^\)]*?)\s*\)", "(${1})"),
        (r"\[\s*([^\]]*?)\s*\]", "[${1}]"),
        (r"\{\s*([^}]*?)\s*\}", "{${1}}"),
        (r#""\s*([^"]*?)\s*""#, "\"${1}\""),
        (r"'\s*([^']*?)\s*'", "'${1}'"),
    ] {
        page = replace(from, &page, to);
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" ° ", "°"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        page = page.replace(from, to);
    }
    Ok(page.into())
}

/// Words and bytes are those of the page as it was before.
fn wikitext_counts(doc: &Doc) -> Result<(u64, u64), Wrong> {
    let page = text(doc, "page")?;
    Ok((python::count_words(page), page.len() as u64))
}
