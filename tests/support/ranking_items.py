"""Prompts with answers to rank."""

from lowrank_rlhf.run.records import Message, Prompt, Sample


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Tell me {i} ☂"),)) for i in range(count)]


def samples(count: int, answers: int = 4) -> list[Sample]:
    return [
        Sample(id=f"p{i}-{k}", prompt_id=f"p{i}", text=f"answer {k}", tokens=(i, k))
        for i in range(count)
        for k in range(answers)
    ]
