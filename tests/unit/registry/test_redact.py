"""What may be shown of a URL."""

from apparate.registry.redact import redact_url


def test_user_information_and_signatures_are_hidden() -> None:
    shown = redact_url("https://user:pa55@s3.example/b/k?X-Amz-Signature=abc&X-Amz-Expires=60&ns=docker.io#frag")
    assert shown == "https://s3.example/b/k?X-Amz-Signature=REDACTED&X-Amz-Expires=REDACTED&ns=docker.io"


def test_parameters_of_the_distribution_api_stay() -> None:
    url = "https://r.example/v2/a/blobs/uploads/?digest=sha256:ab&mount=sha256:cd&from=b/c"
    assert redact_url(url) == url


def test_nonsense_is_still_one_short_string() -> None:
    assert redact_url("http://[half") == "<unparsable URL>"
    assert len(redact_url("http://h/" + "x" * 10_000)) == 512
