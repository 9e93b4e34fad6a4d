//! The live page: one file with everything in it, put together from `page/` when this is compiled.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;

macro_rules! style {
    () => {
        include_str!("page/page.css")
    };
}

/// One script: names of one part are known in the next.
macro_rules! script {
    () => {
        concat!(
            include_str!("page/chart.js"),
            include_str!("page/table.js"),
            include_str!("page/page.js")
        )
    };
}

/// What is served at `/`. It is the same for everybody and holds nothing of the process.
pub(super) const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
    "<meta name=\"viewport\" content=\"width=device-width\">\n<title>ringress</title>\n",
    // Without one, browsers ask for /favicon.ico.
    "<link rel=\"icon\" href=\"data:image/svg+xml,",
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E",
    "%3Ccircle cx='8' cy='8' r='5.5' fill='none' stroke='%230b62c4' stroke-width='3'/%3E%3C/svg%3E\">\n",
    "<style>",
    style!(),
    "</style>\n</head>\n<body>\n",
    include_str!("page/page.html"),
    "<script type=\"module\">",
    script!(),
    "</script>\n</body>\n</html>\n"
);

/// What a browser lets the page do: run the one script and use the one style that stand in it, known by their
/// hashes, and ask where it came from. Nothing is loaded from elsewhere, and no other page may show it in a
/// frame. The page shows names that others chose and may hold the token, so no text can become HTML, either: a
/// slip in the script is an error in the browser and no hole.
pub(super) fn policy() -> HeaderValue {
    POLICY.clone()
}

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        source(style!()),
        source(script!())
    );
    HeaderValue::try_from(policy).expect("hashes and words are ASCII")
});

/// How a policy names an element with this text in it.
fn source(text: &str) -> String {
    let hash = STANDARD.encode(digest(&SHA256, text.as_bytes()));
    format!("'sha256-{hash}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in the only element of this kind.
    fn inside(tag: &str) -> &'static str {
        let (before, rest) = PAGE.split_once(&format!("<{tag}")).unwrap();
        assert!(!rest.contains(&format!("<{tag}")) && !before.contains(&format!("</{tag}")));
        let (_, text) = rest.split_once('>').unwrap();
        text.split_once(&format!("</{tag}>")).unwrap().0
    }

    #[test]
    fn a_browser_finds_what_the_policy_names() {
        let policy = policy();
        let policy = policy.to_str().unwrap();
        for tag in ["style", "script"] {
            let named = format!("{tag}-src {};", source(inside(tag)));
            assert!(policy.contains(&named), "{named} in {policy}");
        }
        assert!(!policy.contains("unsafe"));
    }

    #[test]
    fn nothing_comes_from_elsewhere_or_becomes_html() {
        for word in ["https://", "@import", "url(", " style=", " onclick="] {
            assert!(!PAGE.contains(word), "{word}");
        }
        // The names of SVG are no addresses.
        let addresses = PAGE.matches("http://").count();
        assert_eq!(
            addresses,
            PAGE.matches("http://www.w3.org/2000/svg").count()
        );
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
            "document.write",
        ] {
            assert!(!inside("script").contains(word), "{word}");
        }
    }
}
