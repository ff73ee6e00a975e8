-- Pairs of responses to one instruction that both of two judges tell apart: how many, and how many in the same order.
WITH
votes AS (
    SELECT
        instruction_id,
        response_id,
        generate_subscripts(scores, 1) AS place,
        unnest(scores) AS score
    FROM scored
),
orders AS (
    SELECT
        one.instruction_id,
        one.place,
        one.response_id,
        two.response_id AS other_id,
        sign(one.score - two.score) AS direction
    FROM votes AS one
    INNER JOIN votes AS two
        ON
            one.instruction_id = two.instruction_id
            AND one.place = two.place
            AND one.response_id < two.response_id
            AND one.score <> two.score
)
SELECT
    orders.instruction_id,
    orders.place - 1 AS one,
    others.place - 1 AS two,
    count(*) AS pairs,
    count(*) FILTER (orders.direction = others.direction) AS same
FROM orders
INNER JOIN orders AS others
    ON
        orders.instruction_id = others.instruction_id
        AND orders.response_id = others.response_id
        AND orders.other_id = others.other_id
        AND orders.place < others.place
GROUP BY orders.instruction_id, orders.place, others.place
ORDER BY orders.instruction_id, orders.place, others.place
