"""Laws of every ledger, wherever it lies: a class of tests over a fixture `place`."""

from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError

from fakes import fake_scorecard, named_pool
from recycler.errors import NotFoundError
from recycler.ledger import Ledger
from recycler.search.baselines import blend
from recycler.types import Failure, Outcome

RECIPE = blend(named_pool(), "bfloat16", {"m0": 0.25, "m1": 0.75})


def scorecard(role="search", num_items=2):
    """A scorecard of the first items, each with some tokens."""
    outcomes = tuple(
        Outcome(item=f"i{index}", values=(("m", index / 3),), output=f"ö {index}", num_tokens=index)
        for index in range(num_items)
    )
    made = replace(fake_scorecard(RECIPE, role), outcomes=outcomes)
    return replace(made, merge_seconds=0.5, score_seconds=1.5)


class LedgerContract:
    """Derive from it, give a fixture `place`, and every law is tested there."""

    @pytest.fixture
    def ledger(self, place):
        ledger = Ledger(place)
        yield ledger
        ledger.close()

    def again(self, ledger, place):
        """The same ledger, as the next process reads it."""
        ledger.close()
        return Ledger(place, create=False)

    def test_a_new_ledger_is_empty(self, ledger):
        assert ledger.trials() == () and ledger.spent() == (0, 0.0)
        assert ledger.counts() == {"SCORED": 0, "PENDING": 0, "FAILED": 0}
        assert ledger.failures() == () and ledger.fact("job") is None
        with pytest.raises(NotFoundError):
            ledger.files()
        with pytest.raises(NotFoundError):
            ledger.outcomes(0, "search")

    def test_an_open_trial_outlives_its_process(self, ledger, place):
        ledger.open_trial(0, "merge", RECIPE, label="l", params=(("b", 0.1), ("a", 1e-17)))
        (trial,) = self.again(ledger, place).trials()
        assert (trial.number, trial.kind, trial.label, trial.state) == (0, "merge", "l", "PENDING")
        assert trial.recipe == RECIPE and trial.params == (("a", 1e-17), ("b", 0.1))

    def test_a_number_is_taken_once(self, ledger):
        ledger.open_trial(0, "merge", RECIPE)
        with pytest.raises(IntegrityError):
            ledger.open_trial(0, "merge", RECIPE)
        assert len(ledger.trials()) == 1

    def test_a_closed_trial_has_its_scores_and_outcomes_bit_for_bit(self, ledger, place):
        card = scorecard()
        ledger.open_trial(0, "member", RECIPE)
        ledger.close_trial(0, card)
        ledger = self.again(ledger, place)
        (trial,) = ledger.trials()
        assert trial.state == "SCORED" and trial.weights_digest == card.weights_digest
        assert set(trial.search) == set(card.scores) and trial.holdout == ()
        assert ledger.outcomes(0, "search") == card.outcomes
        assert ledger.spent() == (card.num_tokens, 2.0)
        free = replace(card, num_tokens=0, merge_seconds=0.0, score_seconds=0.0)
        assert replace(ledger.scorecard(0, "search"), scores=card.scores) == free

    def test_a_failure_of_the_system_is_pending_again_and_one_of_the_recipe_is_final(self, ledger):
        for number, blame in enumerate(("system", "recipe")):
            ledger.open_trial(number, "merge", RECIPE)
            ledger.fail_trial(number, Failure(blame=blame, reason=f"by {blame}", attempts=3))
        assert [failure.reason for _, failure in ledger.failures()] == ["by system", "by recipe"]
        assert ledger.retry_system_failures() == (0,) and ledger.retry_system_failures() == ()
        assert [trial.state for trial in ledger.trials()] == ["PENDING", "FAILED"]
        assert ledger.counts() == {"SCORED": 0, "PENDING": 1, "FAILED": 1}

    def test_holdout_scores_are_added_once(self, ledger):
        ledger.open_trial(0, "member", RECIPE)
        ledger.close_trial(0, scorecard())
        first = scorecard("holdout")
        for card in (first, scorecard("holdout", num_items=1)):
            ledger.add_holdout(0, card)
        (trial,) = ledger.trials()
        assert set(trial.holdout) == set(first.scores)
        assert ledger.outcomes(0, "holdout") == first.outcomes

    def test_more_items_replace_fewer_once_and_their_costs_are_added(self, ledger):
        ledger.open_trial(0, "merge", RECIPE)
        ledger.close_trial(0, scorecard())
        whole = scorecard(num_items=3)
        for _ in range(2):
            ledger.extend_trial(0, whole)
            assert ledger.outcomes(0, "search") == whole.outcomes
            assert ledger.spent() == (2 * whole.num_tokens, 4.0)

    def test_facts_and_files_are_replaced_and_kept(self, ledger, place):
        for value in ("1.0", "2.0"):
            ledger.set_fact("elapsed_seconds", value)
            ledger.keep_files({"job.yaml": value.encode(), value: b"\x00\xff"})
        ledger = self.again(ledger, place)
        assert ledger.fact("elapsed_seconds") == "2.0" and ledger.facts.elapsed_seconds == 2.0
        assert ledger.files() == {"job.yaml": b"2.0", "2.0": b"\x00\xff"}
