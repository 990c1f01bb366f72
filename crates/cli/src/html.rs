//! Text in the pages that commands write.

/// Text as it is, whatever it holds.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML has no way to write other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_becomes_markup() {
        let hostile = "<script>alert(\"&'\u{0}\u{1b}\")</script>\n\tx";
        assert_eq!(
            escape(hostile),
            "&lt;script&gt;alert(&quot;&amp;&#39;\u{fffd}\u{fffd}&quot;)&lt;/script&gt;\n\tx"
        );
        assert_eq!(escape("ünïcödé 漢字"), "ünïcödé 漢字");
    }
}
