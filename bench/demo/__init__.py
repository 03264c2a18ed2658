"""The demo: a web page that shows predictions of logged models for patients with a truth or for dropped files."""
