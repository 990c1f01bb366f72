//! The page is complete, closed in itself, and has no way to take a model's words for markup.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;

async fn get_with(path: &str, tags: Option<&str>) -> Response {
    let mut request = Request::get(path);
    if let Some(tags) = tags {
        request = request.header(IF_NONE_MATCH, tags);
    }
    routes().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn text(response: Response) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn every_file_has_its_type_and_a_tag_that_saves_the_second_transfer() {
    let mut tags = BTreeSet::new();
    for &(path, kind, content) in FILES {
        let first = get_with(path, None).await;
        assert_eq!(first.status(), StatusCode::OK, "{path}");
        assert_eq!(first.headers()[CONTENT_TYPE], kind, "{path}");
        assert_eq!(first.headers()[CACHE_CONTROL], "no-cache", "{path}");
        let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
        assert_eq!(text(first).await, content, "{path}");
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let again = get_with(path, Some(&known)).await;
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{path} {known}");
            assert_eq!(again.headers()[ETAG], *tag);
            assert_eq!(text(again).await, "");
        }
        assert_eq!(get_with(path, Some("\"other\"")).await.status(), StatusCode::OK, "{path}");
        assert!(tags.insert(tag), "{path} has the tag of another file");
    }
    assert_eq!(get_with("/assets/", None).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get_with("/assets/../page.rs", None).await.status(), StatusCode::NOT_FOUND);
}

/// All values of `attribute="…"` in a text.
fn values<'a>(text: &'a str, attribute: &'a str) -> impl Iterator<Item = &'a str> {
    let start = format!(" {attribute}=\"");
    let at: Vec<usize> = text.match_indices(&start).map(|(i, _)| i + start.len()).collect();
    at.into_iter().map(move |i| text[i..].split('"').next().unwrap_or_default())
}

#[test]
fn what_the_page_refers_to_is_served_and_nothing_is_outside() {
    let served: BTreeSet<&str> = paths().collect();
    let mut used = BTreeSet::from(["/"]);
    for &(path, kind, content) in FILES {
        let links = values(content, "src").chain(values(content, "href"));
        used.extend(links.filter(|link| link.starts_with("/assets/")));
        if kind == JS {
            let imports =
                content.lines().filter_map(|line| line.split_once(" from \"")).map(|(_, rest)| rest);
            used.extend(imports.map(|rest| rest.split('"').next().unwrap_or_default()));
        }
        let outside = content.replace("http://www.w3.org/2000/svg", "");
        for sign in ["http://", "https://", "//cdn", "url("] {
            assert!(!outside.contains(sign), "{path} has {sign}");
        }
    }
    assert_eq!(used, served, "referred to, and served");
}

/// A policy of `default-src 'self'` lets no inline script or style run.
#[test]
fn nothing_is_inline() {
    let html = FILES[0].2;
    for script in html.split("<script").skip(1) {
        let (tag, rest) = script.split_once('>').unwrap();
        assert!(tag.contains("src=") && rest.starts_with("</script>"), "<script{tag}>");
    }
    assert!(!html.contains("<style"));
    let words: Vec<&str> = html.split(|c: char| c.is_whitespace() || c == '<').collect();
    for word in words {
        let name = word.split('=').next().unwrap_or_default();
        let handler =
            name.strip_prefix("on").is_some_and(|event| event.chars().all(|c| c.is_ascii_lowercase()));
        assert!(!(word.contains('=') && (handler || name == "style")), "{word}");
    }
    assert!(!html.contains("javascript:"));
}

/// The page has no function that makes markup, code or style out of text.
#[test]
fn text_cannot_become_markup() {
    let makers = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "createContextualFragment",
        "setHTMLUnsafe",
        "srcdoc",
        "eval(",
        "Function(",
        "import(",
        "setAttribute(\"on",
        "setAttribute(\"style",
    ];
    for &(path, _, content) in FILES.iter().filter(|(_, kind, _)| *kind == JS) {
        for word in makers {
            assert!(!content.contains(word), "{path} has {word}");
        }
    }
}

/// Every element that the scripts look for by its name is in the page.
#[test]
fn names_of_elements_agree() {
    let html = FILES[0].2;
    let ids: BTreeSet<&str> = values(html, "id").collect();
    assert_eq!(ids.len(), values(html, "id").count(), "a name is used twice");
    let mut looked_for = 0;
    for &(path, ..) in FILES.iter().filter(|(_, kind, _)| *kind == JS) {
        let content = FILES.iter().find(|(p, ..)| *p == path).unwrap().2;
        for part in content.split("$(\"").skip(1) {
            let id = part.split('"').next().unwrap();
            assert!(ids.contains(id), "{path} looks for #{id}");
            looked_for += 1;
        }
    }
    assert!(looked_for > 20, "{looked_for}");
    for id in values(html, "for").chain(values(html, "aria-labelledby")).chain(values(html, "aria-controls"))
    {
        assert!(ids.contains(id), "a label names #{id}");
    }
    for id in values(html, "href").filter_map(|link| link.strip_prefix('#')) {
        assert!(ids.contains(id), "a link names #{id}");
    }
}
