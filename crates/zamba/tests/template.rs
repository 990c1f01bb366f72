//! Chat templates: renderings against `transformers`, files of a checkpoint folder, hostile templates.

use std::path::Path;

use zamba::template::{ChatTemplate, CivilTime, Message, TemplateError};

#[derive(serde::Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    expected: Option<String>,
    error: Option<String>,
}

/// Made by `data/text_goldens.py` with `apply_chat_template`.
#[derive(serde::Deserialize)]
struct Goldens {
    templates: std::collections::BTreeMap<String, String>,
    cases: Vec<Case>,
}

fn special() -> Vec<(String, String)> {
    [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "[PAD]")]
        .map(|(a, b)| (a.into(), b.into()))
        .to_vec()
}

fn render(source: &str) -> Result<String, TemplateError> {
    ChatTemplate::new(source, special())?.render(&[Message::new("user", "hi")], false)
}

#[test]
fn renderings_are_those_of_transformers() {
    let goldens: Goldens = serde_json::from_str(include_str!("data/template_goldens.json")).unwrap();
    assert!(goldens.cases.len() >= 50);
    for case in goldens.cases {
        let template = ChatTemplate::new(&goldens.templates[&case.template], special()).unwrap();
        let result = template.render(&case.messages, case.add_generation_prompt);
        match (case.expected, case.error) {
            (Some(expected), None) => assert_eq!(result.unwrap(), expected, "{}", case.template),
            (None, Some(error)) => match result {
                Err(TemplateError::Raised { message }) => assert_eq!(message, error),
                other => panic!("{}: expected {error:?}, got {other:?}", case.template),
            },
            _ => panic!("a case has either a text or an error"),
        }
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

fn from_dir(files: &[(&str, &str)]) -> Result<Option<String>, TemplateError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(dir.path(), name, text);
    }
    let template = ChatTemplate::from_dir(dir.path())?;
    template.map(|t| t.render(&[Message::new("user", "hi")], true)).transpose()
}

#[test]
fn a_folder_may_have_no_template() {
    assert_eq!(from_dir(&[]).unwrap(), None);
    assert_eq!(from_dir(&[("tokenizer_config.json", r#"{"chat_template": null}"#)]).unwrap(), None);
}

#[test]
fn the_template_file_wins_and_named_lists_have_a_default() {
    let config = ("tokenizer_config.json", r#"{"chat_template": "config {{ messages[0].content }}"}"#);
    assert_eq!(from_dir(&[config]).unwrap().unwrap(), "config hi");
    assert_eq!(from_dir(&[config, ("chat_template.jinja", "file\n")]).unwrap().unwrap(), "file");
    let list =
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(from_dir(&[("tokenizer_config.json", list)]).unwrap().unwrap(), "d");
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}]}"#;
    let error = from_dir(&[("tokenizer_config.json", list)]).unwrap_err();
    assert!(matches!(&error, TemplateError::NoDefault { names } if names == "tool_use"), "{error}");
    for form in [
        r#"{"chat_template": 3}"#,
        r#"{"chat_template": [{"name": "default"}]}"#,
        r#"{"chat_template": ["x"]}"#,
    ] {
        assert!(matches!(from_dir(&[("tokenizer_config.json", form)]), Err(TemplateError::Form)), "{form}");
    }
}

#[test]
fn special_tokens_come_from_the_files() {
    let config = r#"{"bos_token": {"content": "<B>"}, "eos_token": "<E>", "chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}"}"#;
    assert_eq!(from_dir(&[("tokenizer_config.json", config)]).unwrap().unwrap(), "<B><E>");
}

#[test]
fn the_date_exists_only_if_the_caller_gives_one() {
    let source =
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}";
    assert_eq!(render(source).unwrap(), "26 Jul 2024");
    let mut template = ChatTemplate::new(source, special()).unwrap();
    template.set_now(CivilTime::from_seconds(1_000_000_000));
    assert_eq!(template.render(&[Message::new("user", "hi")], false).unwrap(), "09 Sep 2001");
}

#[test]
fn endless_work_runs_out_of_fuel() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let recursive = "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    let doubling = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    for source in [nested, doubling] {
        assert!(matches!(render(source), Err(TemplateError::OutOfFuel)), "{source}: {:?}", render(source));
    }
    for source in [recursive, "{{ 'a' * 1000000000 }}", "{{ range(100000000) | list | length }}"] {
        assert!(render(source).is_err(), "{source}");
    }
}

#[test]
fn output_is_capped() {
    let source = "{% for i in range(2000) %}{{ 'x' * 4096 }}{% endfor %}";
    assert!(matches!(render(source), Err(TemplateError::OutputTooLarge)));
    let long = "x".repeat((1 << 20) + 1);
    assert!(matches!(render(&long), Err(TemplateError::TooLarge { .. })));
}

#[test]
fn templates_reach_nothing_outside() {
    for source in ["{% include '/etc/passwd' %}", "{% import 'x' as y %}", "{{ messages.__class__.__mro__ }}"]
    {
        assert!(render(source).is_err(), "{source}");
    }
}

#[test]
fn errors_name_the_line() {
    let error = ChatTemplate::new("a\n{% if %}", special()).unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error}");
    let error = render("a\nb\n{{ missing.field }}").unwrap_err();
    assert!(matches!(error, TemplateError::Render { line: 3, .. }), "{error}");
    let empty = ChatTemplate::new("x", special()).unwrap().render(&[], true);
    assert!(matches!(empty, Err(TemplateError::NoMessages)));
}

#[test]
fn tools_and_calls_reach_the_template_as_objects() {
    let source = "{% for t in tools %}{{ t | tojson }};{% endfor %}{% for m in messages %}{{ m.role }}={{ m.content }}\
        {% for c in m.tool_calls or [] %}[{{ c.function.arguments.n }}]{% endfor %};{% endfor %}";
    let template = ChatTemplate::new(source, special()).unwrap();
    assert!(template.knows_tools() && template.source() == source);
    let messages = [
        serde_json::json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"n": 18446744073709551615u64}}}]}),
        serde_json::json!({"role": "tool", "content": "é"}),
    ];
    let tools = [serde_json::json!({"b": [1.5, null, true], "a": "x"})];
    let text = template.render_json(&messages, Some(&tools), false).unwrap();
    assert_eq!(text, "{\"b\": [1.5, null, true], \"a\": \"x\"};assistant=[18446744073709551615];tool=é;");
    assert!(!ChatTemplate::new("{{ messages[0].content }}", special()).unwrap().knows_tools());
    assert!(matches!(template.render_json(&[], None, true), Err(TemplateError::NoMessages)));
}
