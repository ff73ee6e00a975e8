-- Each held-out instruction with the target's own first complete response, as it had the conversation;
-- one without any is left out.
SELECT
    pool.instruction_id,
    list_concat(
        CASE WHEN $system IS NOT NULL THEN [{'role': 'system', 'content': $system}] ELSE [] END,
        [{'role': 'user', 'content': pool.instruction}, {'role': 'assistant', 'content': responses.text}]
    ) AS messages
FROM pool
JOIN responses USING (instruction_id)
WHERE pool.held_out AND responses.member = $target AND responses.status = 'ok'
QUALIFY row_number() OVER (
    PARTITION BY pool.instruction_id ORDER BY responses.sample_index, responses.response_id
) = 1
ORDER BY pool.instruction_id
