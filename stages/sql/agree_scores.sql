-- Each complete response that any of $judges was asked about, with its scores in the order of $judges, NULL where missing.
SELECT
    responses.instruction_id,
    responses.response_id,
    responses.member,
    coalesce(length(responses.text), 0) AS characters,
    list(judgments.score ORDER BY asked.place) AS scores
FROM responses
CROSS JOIN (
    SELECT unnest($judges::VARCHAR[]) AS judge, generate_subscripts($judges::VARCHAR[], 1) AS place
) AS asked
LEFT JOIN judgments
    ON judgments.response_id = responses.response_id AND judgments.judge = asked.judge
WHERE
    responses.status = 'ok'
    AND list_contains($members::VARCHAR[], responses.member)
GROUP BY responses.instruction_id, responses.response_id, responses.member, responses.text
HAVING count(judgments.judge) > 0
ORDER BY responses.instruction_id, responses.response_id
