//! The live page: one file with everything in it.

/// What is served at `/`. It is the same for everybody and holds nothing of the process.
pub(super) const PAGE: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>ringress</title>
<h1>ringress</h1>
<p><a href=\"status\">status</a> <a href=\"metrics\">metrics</a> <a href=\"config\">configuration</a>
</html>
";

/// What a browser lets the page do: what stands in it, and requests to where it came from. Nothing is loaded
/// from elsewhere, and no other page may show it in a frame.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
