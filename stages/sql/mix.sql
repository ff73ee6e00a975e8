-- The rows that one variant may take, in the order in which it takes them; table limits has the most of each part.
-- A part is a domain's rows (by their source) or all rehearsal rows. The order is a seeded hash, so fewer rows are a
-- prefix; rehearsal rows are ordered by their instruction, so that variants rehearse the same instructions as far as both
-- kept them.
WITH
candidates AS (
    SELECT source AS part, *
    FROM domain
    WHERE status = 'ok'
    UNION ALL
    SELECT 'rehearsal' AS part, *
    FROM cleaned
    WHERE status = 'ok'
)
SELECT candidates.*
FROM candidates
JOIN limits USING (part)
QUALIFY row_number() OVER (
    PARTITION BY part ORDER BY sha256(concat_ws(chr(31), $seed, 'mix', order_id)), order_id, row_id
) <= limits.rows
ORDER BY part, sha256(concat_ws(chr(31), $seed, 'mix', order_id)), order_id, row_id
