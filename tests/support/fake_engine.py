"""An engine without a model, and texts that repeat themselves."""

from recycler.engines.watch import (
    refuse_degenerate,
)
from recycler.types import (
    Completion,
    Loglikelihood,
)

LOOPS = (
    "!" * 300,
    "The answer is 4. " * 20,
    "0 1 " * 60,
    "I am a model. I am here to help you. " * 10,
    "\n" * 200,
)


class Engine:
    """Answers after a fashion:

    `texts` by turns, likelihoods of `logprob`, finishing out of order.
    """

    fingerprint = "fake"

    def __init__(self, logprob=-1.0, babbles=False):
        self.logprob, self.babbles = logprob, babbles

    def apply(self, recipe):
        return "digest"

    def generate(self, requests, watch=None):
        if self.babbles and watch.gate:
            refuse_degenerate(LOOPS)
        answers = [
            Completion(text=str(index), num_tokens=1, finish="stop")
            for index in range(len(requests))
        ]
        for index in reversed(range(len(requests))):
            watch.done(index, answers[index])
        return answers

    def loglikelihood(self, requests):
        return [
            Loglikelihood(logprob=self.logprob, token_logprobs=(self.logprob,), is_greedy=False)
            for _ in requests
        ]
