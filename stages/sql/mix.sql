-- One variant's training set: the first $domain_rows and $rehearsal_rows in seeded hash order, so fewer are a prefix.
-- A rehearsal row is the conversation as its writer had it, system turn included.
-- Rehearsal rows are ordered by their instruction: variants rehearse the same instructions as far as both kept them.
-- Those of a source are taken as they are and ordered by their id; either `selected` or `drawn` is empty.
WITH
learnt AS (
    SELECT row_id, messages, 'domain' AS source, NULL::VARCHAR AS member, licence
    FROM domain
    QUALIFY row_number() OVER (ORDER BY sha256(concat_ws(chr(31), $seed, 'mix', row_id)), row_id) <= $domain_rows
),
rehearsed AS (
    SELECT
        selected.response_id AS row_id,
        list_concat(
            CASE WHEN writers.system IS NOT NULL THEN [{'role': 'system', 'content': writers.system}] ELSE [] END,
            [{'role': 'user', 'content': selected.instruction}, {'role': 'assistant', 'content': selected.response}]
        ) AS messages,
        'reconstructed' AS source,
        selected.member,
        writers.licence
    FROM selected
    LEFT JOIN writers USING (member)
    WHERE selected.status = 'ok'
    QUALIFY row_number() OVER (
        ORDER BY sha256(concat_ws(chr(31), $seed, 'mix', selected.instruction_id)), selected.instruction_id
    ) <= $rehearsal_rows
),
taken AS (
    SELECT row_id, messages, source, NULL::VARCHAR AS member, licence
    FROM drawn
    WHERE status = 'ok'
    QUALIFY row_number() OVER (ORDER BY sha256(concat_ws(chr(31), $seed, 'mix', row_id)), row_id) <= $rehearsal_rows
)
SELECT * FROM learnt
UNION ALL
SELECT * FROM rehearsed
UNION ALL
SELECT * FROM taken
ORDER BY row_id
