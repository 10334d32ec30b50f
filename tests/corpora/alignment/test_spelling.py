"""Transcripts as people write them, against their spoken forms by hand."""

import pytest

from spirit_jax.corpora.alignment.spelling import spell


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Hello, World!", "hello world"),
        ("it's o’clock", "it's o'clock"),
        ("'quoted' (aside) [note]", "quoted aside note"),
        ("Dr. No & Mrs. Yes", "doctor no and missus yes"),
        ("U.S.A. at 10 a.m.", "u s a at ten a m"),
        ("twenty-one e-mails", "twenty one e mails"),
        ("$1 $5 €2.50 7%", "one dollar five dollars two point five euros seven percent"),
        (
            "in 1998, the 21st of 1,250",
            "in nineteen ninety eight the twenty first of one thousand two hundred and fifty",
        ),
        ("-3.5 and 10:30", "three point five and ten thirty"),
        ("naïve café", "naïve café"),
        ("ﬁne Ａ", "fine a"),  # compatibility forms
    ],
)
def test_english_is_spelled_as_it_is_spoken(written, spoken):
    assert " ".join(part for word in spell(written) for part in word.spoken) == spoken


def test_every_written_word_is_kept_in_its_place():
    text = "Wait — 2 of $3… «oui»   日本語 \n end."
    assert [word.text for word in spell(text)] == text.split()
    assert [bool(word.spoken) for word in spell(text)] == [True, False, True, True, True, True, True, True]


def test_numbers_follow_the_language():
    assert spell("21 Katzen", "de")[0].spoken == ("einundzwanzig",)


def test_digits_of_a_language_without_rules_have_no_spoken_form():
    assert spell("21 abc", "xx") == spell("21 abc", "xx")
    assert [word.spoken for word in spell("21 abc", "xx")] == [(), ("abc",)]


@pytest.mark.parametrize(
    "text", ["9" * 400, "1e400", "0." + "0" * 500, "12,,,3", "3..4", "\u0660\u0661", "½", "x" * 10_000, "\ud800"]
)
def test_odd_tokens_never_raise(text):
    assert [word.text for word in spell(text)] == text.split()
