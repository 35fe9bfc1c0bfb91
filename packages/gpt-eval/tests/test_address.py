import pytest

from gpt_eval.address import Address, ollama_address, openai_address


@pytest.mark.parametrize(
    ("value", "url"),
    [
        # What Ollama's own client makes of them.
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":56789", "http://127.0.0.1:56789"),
        ("1.2.3.4:56789", "http://1.2.3.4:56789"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("https://1.2.3.4", "https://1.2.3.4:443"),
        ("https://1.2.3.4:56789", "https://1.2.3.4:56789"),
        ("example.com", "http://example.com:11434"),
        ("example.com:56789", "http://example.com:56789"),
        ("https://example.com", "https://example.com:443"),
        ("example.com/", "http://example.com:11434"),
        ("example.com:56789/", "http://example.com:56789"),
        ("example.com/path", "http://example.com:11434/path"),
        ("example.com:56789/path/", "http://example.com:56789/path"),
        ("https://example.com:56789/path", "https://example.com:56789/path"),
        ("[0001:002:003:0004::1]", "http://[0001:002:003:0004::1]:11434"),
        ("[0001:002:003:0004::1]:56789/path/", "http://[0001:002:003:0004::1]:56789/path"),
        ("http://[0001:002:003:0004::1]/path", "http://[0001:002:003:0004::1]:80/path"),
        # What a client can connect to where a server listens everywhere; the book's address.
        ("::1", "http://[::1]:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::]:1", "http://[::1]:1"),
        ("http://localhost:11434/api/chat", "http://localhost:11434"),
    ],
)
def test_ollamas_host_is_read_as_ollama_reads_it(value, url):
    assert ollama_address(None, environment={"OLLAMA_HOST": value}).url == url
    assert ollama_address(value, environment={"OLLAMA_HOST": "elsewhere"}).url == url


def test_openais_base_is_the_argument_or_the_environment_or_openais_own():
    environment = {"OPENAI_BASE_URL": "http://localhost:8000/v1/"}
    assert openai_address(None, environment=environment).url == "http://localhost:8000/v1"
    assert openai_address("https://host/v1", environment=environment).url == "https://host:443/v1"
    assert openai_address(None, environment={}).url == "https://api.openai.com:443/v1"


@pytest.mark.parametrize(
    "value",
    [
        "ftp://user:hunter2hunter2@host", "hunter2hunter2://host", "hunter2hunter2:x@host://",
        "file:///hunter2hunter2", "http://", "http://user:hunter2hunter2@host:99999",
        "http://user:hunter2hunter2@[::1", "http://host/?key=hunter2hunter2", "http://host/#hunter2hunter2",
        "http://ho st/", "http://host\n", "http://user:hunter2hunter2@host\\evil", "http://a:hunter2hunter2@host:x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("address", [ollama_address, openai_address])
def test_what_is_no_address_is_refused_without_showing_a_secret(value, address):
    if value.strip() != value:
        assert address(value)  # white space around it is none of it
        return
    with pytest.raises(ValueError, match="url") as caught:
        address(value)
    assert "hunter2" not in str(caught.value)


def test_user_password_and_path_are_kept_but_not_shown():
    address = ollama_address("http://me:se%40cret@host:1/key")
    assert (address.user, address.password, address.url) == ("me", "se@cret", "http://host:1/key")
    assert str(address) == "http://host:1"
    assert "se@cret" not in repr(address)
    assert "key" not in repr(address)


@pytest.mark.parametrize(
    ("url", "is_loopback"),
    [("http://127.3.2.1:1", True), ("http://[::1]:1", True), ("http://localhost:1", True),
     ("http://localhost.evil:1", False), ("http://10.0.0.1:1", False)],
)  # fmt: skip
def test_this_machine_is_told_from_others(url, is_loopback):
    assert Address(url).is_loopback is is_loopback
