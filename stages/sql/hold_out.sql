-- Every good instruction, and whether it is held out: the first $count in seeded hash order are.
SELECT
    instruction_id,
    text AS instruction,
    row_number() OVER (
        ORDER BY sha256(concat_ws(chr(31), $seed, 'hold out', instruction_id)), instruction_id
    ) <= $count AS held_out
FROM instructions
WHERE status = 'ok'
ORDER BY instruction_id
