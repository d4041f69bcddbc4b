"""Laws of all workers: a class of tests over a fixture `workers`."""

from dataclasses import replace

from recycler.cluster.workers import Request
from recycler.types import Failure, Scorecard


class WorkersContract:
    """Derive from it, give fixtures `workers` and `recipe`, and every law is tested there.

    `workers` score two objectives; `recipe` is a sound merge.
    """

    def wait_for_all(self, workers, number):
        """The results of `number` requests by trial number."""
        found = {}
        while len(found) < number:
            results = workers.wait()
            assert results, "wait returns when a request has ended"
            for result in results:
                assert result.number not in found, "a request has one result"
                found[result.number] = result
        return found

    def test_every_request_has_one_result_under_its_number_and_role(self, workers, recipe):
        assert workers.num_workers >= 1
        roles = ("search", "search", "holdout", "search")
        for number, role in enumerate(roles):
            workers.submit(Request(number=number, recipe=recipe, role=role))
        found = self.wait_for_all(workers, len(roles))
        assert {number: result.role for number, result in found.items()} == dict(enumerate(roles))
        for number, role in enumerate(roles):
            assert isinstance(found[number].answer, Scorecard) and found[number].answer.role == role

    def test_a_recipe_has_the_same_scores_whenever_it_is_asked(self, workers, recipe):
        request = Request(number=0, recipe=recipe, role="search")
        answers = []
        for number in range(2):
            workers.submit(replace(request, number=number))
            answers += [result.answer for result in workers.wait()]
        first, second = answers
        assert not isinstance(first, Failure) and first.scores == second.scores
        assert first.weights_digest == second.weights_digest

    def test_requests_may_be_submitted_while_others_are_waited_for(self, workers, recipe):
        for number in range(3):
            workers.submit(Request(number=number, recipe=recipe, role="search"))
        seen = [result.number for result in workers.wait()]
        workers.submit(Request(number=3, recipe=recipe, role="search"))
        while len(seen) < 4:
            seen += [result.number for result in workers.wait()]
        assert sorted(seen) == [0, 1, 2, 3]
