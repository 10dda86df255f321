"""模拟评判：一个规则固定的程序，不是人。A simulated judge for Chinese answers: a program with fixed rules."""

WARM = ("您", "请", "祝", "喜欢", "开心", "高兴", "温暖", "舒服", "美好", "谢谢", "一起", "相信")


def warm_and_finished(prompt: str, answers: list[str]) -> list[float]:
    """Higher for Chinese, warm, finished answers that take up a character of the prompt."""
    return [_score(prompt, answer) for answer in answers]


def _score(prompt: str, answer: str) -> float:
    chinese = [character for character in answer if "一" <= character <= "鿿"]
    if not chinese:
        return -1.0
    taken_up = len(set(prompt) & set(chinese)) / len(set(prompt))
    repeated = 1 - len(set(chinese)) / len(chinese)
    warm = min(2, sum(word in answer for word in WARM)) / 2
    return warm + taken_up + 0.5 * answer.endswith(("。", "！", "？")) - repeated
