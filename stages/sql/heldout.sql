-- Each held-out instruction with the target's own first complete response, as it had the conversation: the system
-- message that it drew or the target's own, earlier turns. One without a response is left out.
SELECT
    pool.instruction_id,
    list_concat(
        CASE
            WHEN coalesce(conversations.system, $system) IS NOT NULL
                THEN [{'role': 'system', 'content': coalesce(conversations.system, $system)}]
            ELSE []
        END,
        coalesce(conversations.history, []),
        [{'role': 'user', 'content': pool.instruction}, {'role': 'assistant', 'content': responses.text}]
    ) AS messages
FROM pool
JOIN responses USING (instruction_id)
LEFT JOIN conversations USING (instruction_id)
WHERE pool.held_out AND responses.member = $target AND responses.status = 'ok'
QUALIFY row_number() OVER (
    PARTITION BY pool.instruction_id ORDER BY responses.sample_index, responses.response_id
) = 1
ORDER BY pool.instruction_id
