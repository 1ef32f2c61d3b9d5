# Scores of the answers, by the metric of their data set.


rule score_predictions:
    input:
        ancient(records_of),
    output:
        record=update(
            "<results>/runs/{model}/{dataset}/{run}/{predictions}/scores-{digest}/record.json"
        ),
    log:
        "<logs>/score_predictions/{model}/{dataset}/{run}/{predictions}/{digest}.log",
    localrule: True
    conda:
        "../../envs/environment.yaml"
    resources:
        execution=execution_of,
    params:
        ticket=ticket_of,
    message:
        "Scoring {wildcards.model}, {wildcards.run} on {wildcards.dataset}"
    shell:
        "score_predictions.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"
