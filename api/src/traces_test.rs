use super::*;

fn read(text: &str) -> Result<(String, u16, String), &'static str> {
    text.parse::<Endpoint>().map(|endpoint| (endpoint.host, endpoint.port, endpoint.url))
}

#[test]
fn an_endpoint_is_the_base_of_a_url() {
    for (text, host, port, url) in [
        ("http://localhost:4318", "localhost", 4318, "http://localhost:4318/v1/traces"),
        ("http://10.0.0.1/", "10.0.0.1", 80, "http://10.0.0.1/v1/traces"),
        ("http://[::1]:9/behind/a/gate", "::1", 9, "http://[::1]:9/behind/a/gate/v1/traces"),
    ] {
        assert_eq!(read(text), Ok((host.to_owned(), port, url.to_owned())));
    }
}

#[test]
fn another_url_is_refused() {
    for text in
        ["", "localhost:4318", "https://localhost:4318", "http://", "http://a:b@c:1", "http://a:1?b", "/v1/traces"]
    {
        assert!(read(text).is_err_and(|error| error.contains("http://HOST:PORT")), "{text:?}");
    }
}
