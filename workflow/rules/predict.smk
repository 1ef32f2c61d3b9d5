# Answers of tuned models, and of untuned ones (a "run" named base-<digest of the base model>), to the test splits.


rule generate_predictions:
    input:
        ancient(records_of),
    output:
        record=update(
            "<results>/runs/{model}/{dataset}/{run}/predictions-{digest}/record.json"
        ),
    log:
        "<logs>/generate_predictions/{model}/{dataset}/{run}/{digest}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        **ASKED,
        execution=execution_of,
    params:
        ticket=ticket_of,
    message:
        "Answering {wildcards.dataset} with {wildcards.model}, {wildcards.run}"
    shell:
        "generate_predictions.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"
