-- One variant's training set: the first $domain_rows and $rehearsal_rows in seeded hash order, so fewer are a prefix.
-- A rehearsal row is the conversation as its writer had it, system turn and earlier turns included; its licence is that
-- of everyone who wrote an answer in it.
-- Rehearsal rows are ordered by their instruction: variants rehearse the same instructions as far as both kept them.
WITH
learnt AS (
    SELECT row_id, messages, 'domain' AS source, NULL::VARCHAR AS member, licence
    FROM domain
    QUALIFY row_number() OVER (ORDER BY sha256(concat_ws(chr(31), $seed, 'mix', row_id)), row_id) <= $domain_rows
),
answers AS ( -- of conversations: who wrote each
    SELECT
        selected.response_id,
        unnest(
            list_append([turn.writer for turn in conversations.written if turn.role = 'assistant'], selected.member)
        ) AS member
    FROM selected
    JOIN conversations USING (instruction_id)
    WHERE selected.status = 'ok' AND len(conversations.history) > 0
),
licences AS (
    SELECT response_id, string_agg(DISTINCT licence, ' + ' ORDER BY licence) AS licence
    FROM answers
    JOIN writers USING (member)
    GROUP BY response_id
),
rehearsed AS (
    SELECT
        selected.response_id AS row_id,
        list_concat(
            CASE
                WHEN coalesce(conversations.system, writers.system) IS NOT NULL
                    THEN [{'role': 'system', 'content': coalesce(conversations.system, writers.system)}]
                ELSE []
            END,
            coalesce(conversations.history, []),
            [{'role': 'user', 'content': selected.instruction}, {'role': 'assistant', 'content': selected.response}]
        ) AS messages,
        'reconstructed' AS source,
        selected.member,
        coalesce(licences.licence, writers.licence) AS licence
    FROM selected
    LEFT JOIN writers USING (member)
    LEFT JOIN conversations USING (instruction_id)
    LEFT JOIN licences USING (response_id)
    WHERE selected.status = 'ok'
    QUALIFY row_number() OVER (
        ORDER BY sha256(concat_ws(chr(31), $seed, 'mix', selected.instruction_id)), selected.instruction_id
    ) <= $rehearsal_rows
)
SELECT * FROM learnt
UNION ALL
SELECT * FROM rehearsed
ORDER BY row_id
