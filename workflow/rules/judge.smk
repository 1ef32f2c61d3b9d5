# Judgements by another model, for the metrics that need them.


rule judge_predictions:
    input:
        ancient(records_of),
    output:
        record=update(
            "<results>/runs/{model}/{dataset}/{run}/{predictions}/judgements-{digest}/record.json"
        ),
    log:
        "<logs>/judge_predictions/{model}/{dataset}/{run}/{predictions}/{digest}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        **ASKED,
        execution=execution_of,
    params:
        ticket=ticket_of,
    message:
        "Judging {wildcards.model}, {wildcards.run} on {wildcards.dataset}"
    shell:
        "judge_predictions.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"
