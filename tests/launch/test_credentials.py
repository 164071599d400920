"""What looks like a credential on a command line, to the shell's copy of the rules and to Python's."""

import subprocess

import pytest
from fake_cloud import ROOT

from launch.gke import render

# Put together here, so that no scanner takes this file for a leak.
LETTERS = "aBcDeFgHiJkLmNoPqRsT"
NAMES = """
HF_TOKEN AWS_SESSION_TOKEN CLIENT_SECRET API_KEY OPENAI_API_KEY OPENAI_API_KEYS apikey AWS_SECRET_ACCESS_KEY AZURE_STORAGE_ACCOUNT_KEY SSH_KEY
SECRET_KEY MASTER_KEY SIGNING_KEY ENCRYPTION_KEY AUTH_KEY SERVICE_PRIVATE_KEY service-private-key DB_PASSWORD DB_PASSWD passwd KEY_PASSPHRASE DB_PASS
DB_PWD GOOGLE_APPLICATION_CREDENTIALS x.y.hub_token
""".split()
REFUSED = [
    *(f"{name}=x" for name in NAMES),
    *(f"{prefix}{name}=x" for name in ("HF_TOKEN", "aws_secret_access_key") for prefix in ("--", "--env=", "--gin.", "--set=")),
    "--hf-token",
    *(f"X='{shape}'" for shape in ("hf_" + LETTERS, "ghp_" + LETTERS, "github_pat_" + LETTERS, "AKIA" + "Q" * 16, "ASIA" + "Q" * 16)),
    "X=AIza" + "x" * 35,
    "X=sk-" + LETTERS,
    "X=-----BEGIN PRIVATE KEY-----",
    "DATABASE_URL=postgres://me:hush@db/x",
]
PASSED = """
KEYBOARD=de XLA_FLAGS=--xla_dump_to=/tmp TOKENIZERS_PARALLELISM=false TOKENIZER_FILE=x --gin.plan_batches.num_tokens=5 --gin.x.keys=5 KEY=x SORT_KEY=x
MONKEY=x --gin.mixture.tokenizer_file='tokens' PASSES=2 COMPASS=n BYPASS=1 PWD=/x OLDPWD=/x SECRETARY=x PASSWORDLESS=1 ACCESS_KEYBOARD=x --gin_file=token.gin
--secrets=secrets.env WORKDIR=gs://bucket/run1 HTTP_PROXY=http://proxy:3128 ADDRESS=http://host:1/a@b MAIL=me@example.org task-1 desk-ASIA
""".split()


@pytest.fixture(scope="module")
def by_the_shell():
    """The words that tpu_vm.sh would refuse."""
    words = [*REFUSED, *PASSED]
    script = (
        'source launch/tpu_vm_settings.sh; for word in "$@"; do if looks_like_a_credential "$word"; then printf "%s\\n" "$word"; fi; done'
    )
    command = ["bash", "-euo", "pipefail", "-c", script, "bash", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def by_python(word):
    return render.CREDENTIAL.search(word) is not None


@pytest.mark.parametrize("word", REFUSED)
def test_a_credential_is_refused(by_the_shell, word):
    assert word in by_the_shell
    assert by_python(word)


@pytest.mark.parametrize("word", PASSED)
def test_what_is_none_passes(by_the_shell, word):
    assert word not in by_the_shell
    assert not by_python(word)
